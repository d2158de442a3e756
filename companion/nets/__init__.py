"""Networks, each called as net(x, t, cond): x (batch, …), t (batch,), cond a class or a text per sample or None.

``Classifier`` is called as net(x), or net(x, t); the autoencoders and what reads pictures or words as net(x).
"""

from companion.nets.autoencoder import VAE, VQVAE, Discriminator, perplexity
from companion.nets.classifier import Classifier
from companion.nets.dit import DiT
from companion.nets.embedding import place_embedding, timestep_embedding
from companion.nets.mlp import MLP
from companion.nets.reader import Reader
from companion.nets.text import CrossAttention, TextEncoder
from companion.nets.unet import UNet

__all__ = [
    "Classifier",
    "CrossAttention",
    "DiT",
    "Discriminator",
    "MLP",
    "Reader",
    "TextEncoder",
    "UNet",
    "VAE",
    "VQVAE",
    "perplexity",
    "place_embedding",
    "timestep_embedding",
]
