"""Networks, each called as net(x, t, cond): x (batch, …), t (batch,), cond a class per sample or None."""

from companion.nets.embedding import timestep_embedding
from companion.nets.mlp import MLP
from companion.nets.unet import UNet

__all__ = ["MLP", "UNet", "timestep_embedding"]
