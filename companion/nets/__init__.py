"""Networks, each called as net(x, t, cond): x (batch, …), t (batch,), cond a class per sample or None.

``Classifier`` alone is called as net(x), or net(x, t).
"""

from companion.nets.classifier import Classifier
from companion.nets.dit import DiT
from companion.nets.embedding import timestep_embedding
from companion.nets.mlp import MLP
from companion.nets.unet import UNet

__all__ = ["MLP", "Classifier", "DiT", "UNet", "timestep_embedding"]
