"""A reader of 32×32 digits, whose features measure the samples of other models (three minutes on one CPU thread)."""

import time

import torch
import torch.nn.functional as F

from companion import data, gpu, metrics, recipes, zoo

MODEL = {
    "net": {"class": "Classifier", "arguments": {"channels": 1, "width": 32, "classes": 10, "features": 64}},
}
BATCH = 128


def main(arguments):
    """Train, measure, and write ``mnist_classifier.safetensors`` with its card."""
    options = recipes.options("mnist_classifier", __doc__, 2000)
    given = options.parse_args(arguments)

    device = gpu.device()
    torch.manual_seed(given.seed)
    net = zoo.build(MODEL).to(device)
    images, labels = (whole[40000:] for whole in data.mnist("train"))  # the rest is for the models it is to judge
    began = time.perf_counter()
    fit(net, images.to(device), labels.to(device), given.steps, given.seed)
    seconds = time.perf_counter() - began
    zoo.save(
        given.name,
        net,
        {
            "description": "Reader of 32×32 handwritten digits; its 64 features measure the distance between images.",
            "model": MODEL,
            "recipe": "python -m companion.train mnist_classifier",
            "data": "MNIST (LeCun, Cortes & Burges, CC BY-SA 3.0), images 40,000 to 60,000 of the training split, "
            "padded to 32×32 with -1, moved at random by up to two pixels",
            **recipes.provenance(given, device),
            "batch": BATCH,
            "seconds": round(seconds),
            "metrics": measure(net.to("cpu").half().float()),  # measured as it is stored
        },
        given.out,
    )


def fit(net, images, labels, steps, seed):
    """Cross-entropy on images moved about."""
    draw = torch.Generator(images.device).manual_seed(seed)

    def loss():
        chosen = torch.randint(len(images), (BATCH,), generator=draw, device=images.device)
        return F.cross_entropy(net(moved(images[chosen], draw)), labels[chosen])

    recipes.reading(net, loss, steps, 4e-3)


def moved(images, draw, most=2):
    """Each image moved by its own whole number of pixels, up to ``most`` each way, and filled up with paper."""
    n, size = len(images), images.shape[-1]
    wide = F.pad(images[:, 0], [most] * 4, value=-1.0)
    down, right = torch.randint(2 * most + 1, (2, n, 1), generator=draw, device=images.device)
    at = torch.arange(size, device=images.device)
    each = torch.arange(n, device=images.device)[:, None, None]
    return wide[each, (at + down)[:, :, None], (at + right)[:, None, :]][:, None]


@torch.no_grad()
def measure(net):
    """Accuracy on images it was not trained on, and what the distances between its features are for real images."""
    net.eval()
    (train, train_labels), (test, test_labels) = (data.mnist(split) for split in ("train", "test"))
    features = {
        "test": torch.cat([net.features(part) for part in test.split(500)]),
        "0": torch.cat([net.features(part) for part in train[:10000].split(500)]),
        "1": torch.cat([net.features(part) for part in train[10000:20000].split(500)]),
    }

    def accuracy(found, labels):
        return round((net.decide(found).argmax(1) == labels).double().mean().item(), 4)

    def against_first(found):
        precision, recall = metrics.precision_recall(features["0"], found)
        return {
            "Fréchet distance of features to training images 0 to 10,000": round(
                metrics.frechet_distance(found, features["0"]).item(), 4
            ),
            "precision against them (k = 3)": round(precision, 4),
            "recall of them (k = 3)": round(recall, 4),
        }

    return {
        "training images 0 to 10,000": {"class accuracy": accuracy(features["0"], train_labels[:10000])},
        "training images 10,000 to 20,000": {
            "class accuracy": accuracy(features["1"], train_labels[10000:20000]),
            **against_first(features["1"]),
        },
        "10,000 test images": {
            "class accuracy": accuracy(features["test"], test_labels),
            **against_first(features["test"]),
        },
    }
