"""How noisy is the gradient, and so: how large should a batch be? Usable alone, in any PyTorch loop.

    meter = NoiseMeter(model)
    ...
        loss.backward()
        meter.add(len(target))       # after each micro-batch
    meter.step()                     # after the last, before gradients are clipped or zeroed
    print(meter.noise_scale())

A step over a batch of B examples makes 1 / (1 + B_simple / B) of the progress that the exact gradient would make
(McCandlish et al. 2018, arXiv:1812.06162, eq. 2.7): far below the noise scale doubling a batch halves the steps, far above it
brings nothing. Where a step sees one batch only, `ExampleMeter` takes the place of `NoiseMeter`.
"""

from __future__ import annotations

from tenfold.batch.estimate import NoiseScale
from tenfold.batch.examples import ExampleMeter
from tenfold.batch.meter import NoiseMeter

__all__ = ["ExampleMeter", "NoiseMeter", "NoiseScale"]
