"""A flow of 32×32 digits of MNIST, with classes (a quarter of an hour on one CPU core with --bf16 --compile).

The network, the images and the training are those of ``mnist``; the path is straight and the network gives its
velocity. For a model of equal training to compare with, give ``mnist`` the same steps. A GPU has time for more:

    python -m companion.train mnist_flow --steps 40000 --batch 256 --width 40 --patch 1 --bf16 --compile
"""

from companion import data
from companion.losses import flow_matching_loss
from companion.recipes.mnist import IMAGES, conditional, finish, fit, read
from companion.recipes.mnist import MODEL as DIFFUSION

MODEL = {**DIFFUSION, "schedule": {"class": "RectifiedFlow", "arguments": {}}, "kind": "velocity"}


def main(arguments):
    """Train, measure, and write ``mnist_flow.safetensors`` with its card and a picture of samples."""
    options = conditional("mnist_flow", __doc__, 2500)
    given = read(options, arguments)
    images, labels = data.mnist("train")
    model, seconds = fit(MODEL, given, images[:IMAGES], labels[:IMAGES], loss=flow_matching_loss)
    finish(model, given, options, MODEL, seconds, "Flow of 32×32 handwritten digits, conditional on the class")
