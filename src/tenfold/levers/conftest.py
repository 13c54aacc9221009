"""What the levers' tests share: one small trained model."""

from tenfold.testing import small_builder

__all__ = ["small_builder"]
