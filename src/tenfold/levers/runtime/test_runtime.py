from tenfold.testing import LeverContract


class TestRuntime(LeverContract):
    name = "runtime"
