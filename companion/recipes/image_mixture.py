"""The image mixture: low-rank Gaussians per digit, fitted to MNIST by EM (three minutes on two CPU cores)."""

import math
import time

import torch

from companion import data, recipes, zoo
from companion._image_mixture import SHIPPED, ImageMixture

TABLES = ("weights", "means", "factors", "noise")


def main(arguments):
    """Fit, measure, and write ``image_mixture.safetensors`` with its card."""
    options = recipes.options("image_mixture", __doc__, 40, folder=SHIPPED.parent)  # steps of EM
    options.add_argument("--components", type=int, default=4, help="Gaussians per digit")
    options.add_argument("--rank", type=int, default=11, help="axes per Gaussian")
    given = options.parse_args(arguments)

    images, labels = data.mnist("train")
    began = time.perf_counter()
    mixture = fit(images, labels, given.components, given.rank, given.steps, given.seed)
    seconds = time.perf_counter() - began
    tables = {key: getattr(mixture, key) for key in TABLES}
    tables = {key: value.to(torch.float16).double() for key, value in tables.items()}  # measured as it is stored
    tables["weights"] /= tables["weights"].sum()
    zoo.save(
        given.name,
        torch.nn.ParameterDict({key: value.float() for key, value in tables.items()}),
        {
            "description": "Mixture of low-rank Gaussians over 32×32 images of handwritten digits, a few a class.",
            "model": {"class": "ImageMixture", "components": given.components, "rank": given.rank},
            "recipe": "python -m companion.train image_mixture",
            "data": "MNIST (LeCun, Cortes & Burges, CC BY-SA 3.0), 60,000 for training, padded to 32×32 with -1",
            **recipes.provenance(given, torch.device("cpu")),
            "seconds": round(seconds),
            "metrics": measure(ImageMixture(**tables)),
        },
        given.out,
    )


def fit(images, labels, components, rank, steps, seed):
    """An ``ImageMixture`` fitted class by class; the classes' probabilities are their frequencies."""
    draw = torch.Generator().manual_seed(seed)
    found = [fit_class(images[labels == c], components, rank, steps, draw) for c in range(10)]
    weights, means, factors, noise = (torch.cat([getattr(m, key) for m in found]) for key in TABLES)
    counts = torch.bincount(labels, minlength=10).double()
    return ImageMixture(weights * (counts / counts.sum())[:, None], means, factors, noise)


def fit_class(images, components, rank, steps, draw):
    """Mixture of probabilistic PCAs by EM, started from k-means (Tipping & Bishop 1999, section 3 and appendix A).

    The closed form for factors and noise needs the leading eigenvectors of each component's covariance S; one step of
    subspace iteration, axes <- S axes, follows them along with EM, and S is never formed.
    """
    x = images.flatten(1)
    size, length = x.shape[1], (x**2).sum(1)
    shares = torch.nn.functional.one_hot(k_means(x, components, draw), components).float()
    axes = torch.linalg.qr(torch.randn(components, size, rank, generator=draw)).Q.mT
    for step in range(steps + 10):  # in the first ten, the clusters stand still while the axes turn to them
        count = shares.sum(0)
        share, means = shares / count, shares.mT @ x / count[:, None]
        along = (x @ axes.flatten(0, 1).mT).unflatten(1, (components, rank))
        along = along - torch.einsum("kd,krd->kr", means, axes)
        moved = ((share[..., None] * along).flatten(1).mT @ x).unflatten(0, (components, rank))
        moved = moved - torch.einsum("nk,nkr->kr", share, along)[..., None] * means[:, None]
        _, variances, axes = torch.linalg.svd(moved, full_matrices=False)
        trace = share.mT @ length - (means**2).sum(1)
        floor = (trace - variances.sum(1)) / (size - rank)  # the mean variance off the axes
        factors = (variances - floor[:, None]).sqrt()[..., None] * axes
        if step >= 9:
            shape = (1, components, rank, *images.shape[1:])
            weights = (count.double() / count.double().sum())[None]
            means = means.view(*shape[:2], *shape[3:])
            mixture = ImageMixture(weights, means, factors.view(shape), floor.sqrt()[None])
            shares = mixture.responsibilities(images)[:, 0]
    return mixture


def k_means(x, clusters, draw):
    """The nearest of a few centres for each point, after twenty rounds of Lloyd's algorithm."""
    centres = x[torch.randperm(len(x), generator=draw)[:clusters]]
    for _ in range(20):
        nearest = torch.cdist(x, centres).argmin(1)
        centres = torch.stack([x[nearest == j].mean(0) for j in range(clusters)])
    return nearest


def measure(mixture):
    """Likelihood of the 10,000 test images, and how often the mixture's own Bayes classifier names them rightly."""
    images, labels = data.mnist("test")
    joint = torch.cat([mixture.class_log_prob(part.double()) for part in images.split(500)])
    joint = joint + mixture.weights.sum(1).log()
    nats = torch.logsumexp(joint, 1).mean().item()
    bits = math.log2(127.5) - nats / images[0].numel() / math.log(2)
    found = {
        "mean log-density in nats at the pixel values in [-1, 1]": round(nats, 1),
        "bits per dimension (-log2 of the density times the bin width 2/255, over all 32×32 pixels)": round(bits, 3),
    }
    for alpha, sigma in ((1.0, 0.0), (0.8, 0.6), (0.6, 0.8)):
        draw = torch.Generator().manual_seed(0)
        noisy = alpha * images.double() + sigma * torch.randn(images.shape, dtype=torch.float64, generator=draw)
        guess = torch.cat([mixture.class_posterior(part, alpha, sigma).argmax(1) for part in noisy.split(500)])
        key = f"class accuracy of the mixture's Bayes classifier at alpha {alpha:g}, sigma {sigma:g}"
        found[key] = round((guess == labels).double().mean().item(), 4)
    return {"10,000 real test images": found}
