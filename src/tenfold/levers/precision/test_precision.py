from tenfold.testing import LeverContract


class TestPrecision(LeverContract):
    name = "precision"
