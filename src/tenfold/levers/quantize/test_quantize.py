from tenfold.testing import LeverContract


class TestQuantize(LeverContract):
    name = "quantize"
