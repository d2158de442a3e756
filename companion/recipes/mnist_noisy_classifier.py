"""A reader of 32×32 digits at every noise level; its gradient guides a sampler (a quarter of an hour on a CPU thread).

It is p(class | x, t) for x = alpha x0 + sigma eps: the cross-entropy is smallest there, so nothing is done to the
images but the noise. Trained on the images that the denoiser ``mnist`` was trained on, so that ``mnist_classifier``,
which knows only the others, can judge what the two draw together.

    python -m companion.train mnist_noisy_classifier --bf16 --compile
"""

import time

import torch
import torch.nn.functional as F

from companion import data, gpu, recipes, zoo
from companion.forward import q_sample
from companion.recipes.mnist import IMAGES, working_in
from companion.schedules import CosineVP
from companion.times import antithetic

MODEL = {
    "net": {
        "class": "Classifier",
        "arguments": {"channels": 1, "width": 32, "classes": 10, "features": 64, "timed": True},
    },
}
SCHEDULE = CosineVP(0.008)  # that of the denoiser it guides
BATCH = 128
LEVELS = (8, 6, 4, 2, 0, -2, -4, -6, -8)  # log-SNRs at which it is measured


def main(arguments):
    """Train, measure, and write ``mnist_noisy_classifier.safetensors`` with its card."""
    options = recipes.options("mnist_noisy_classifier", __doc__, 6000)
    options.add_argument("--bf16", action="store_true", help="the network works in bfloat16")
    options.add_argument("--compile", action="store_true", help="compile the network: a minute, and a C++ compiler")
    given = options.parse_args(arguments)

    device = gpu.device()
    torch.manual_seed(given.seed)
    net = zoo.build(MODEL).to(device)
    if given.compile:
        net.compile(dynamic=False)
    images, labels = (whole[:IMAGES] for whole in data.mnist("train"))
    began = time.perf_counter()
    fit(net, images.to(device), labels.to(device), given)
    seconds = time.perf_counter() - began
    stored = zoo.build(MODEL)
    stored.load_state_dict({key: value.half() for key, value in net.state_dict().items()})
    flags = [f"--{key}" for key in ("bf16", "compile") if getattr(given, key)]
    steps = [] if given.steps == options.get_default("steps") else [f"--steps {given.steps}"]
    zoo.save(
        given.name,
        stored,
        {
            "description": "Reader of noisy 32×32 handwritten digits, told the time on CosineVP(0.008); its gradient "
            "guides a sampler.",
            "model": MODEL,
            "recipe": " ".join(["python -m companion.train mnist_noisy_classifier", *steps, *flags]),
            "data": f"MNIST (LeCun, Cortes & Burges, CC BY-SA 3.0), images 0 to {IMAGES:,} of the training split, "
            "padded to 32×32 with -1, noise of CosineVP(0.008) at uniform times",
            **recipes.provenance(given, device),
            "batch": BATCH,
            "seconds": round(seconds),
            "metrics": measure(stored),
        },
        given.out,
    )


def fit(net, images, labels, given):
    """Cross-entropy on noisy images, at times spread evenly."""
    draw = torch.Generator(images.device).manual_seed(given.seed)

    def loss():
        chosen = torch.randint(len(images), (BATCH,), generator=draw, device=images.device)
        x0 = images[chosen]
        t = antithetic(SCHEDULE, BATCH, generator=draw, device=images.device).t
        noise = torch.randn(x0.shape, generator=draw, device=images.device)
        with working_in(given):
            logits = net(q_sample(x0, t, SCHEDULE, noise), t)
        return F.cross_entropy(logits.float(), labels[chosen])

    recipes.reading(net, loss, given.steps, 4e-3)


@torch.no_grad()
def measure(net):
    """Accuracy and cross-entropy on test images at several noise levels, one draw of the noise for each image."""
    net.eval()
    images, labels = data.mnist("test")
    draw, found = torch.Generator().manual_seed(0), {}
    for level in (None, *LEVELS):
        half = torch.tensor(float("inf") if level is None else level / 2, dtype=torch.float64)
        t = SCHEDULE.time_of(half)
        x = q_sample(images, t, SCHEDULE, torch.randn(images.shape, generator=draw))
        parts = [net(part, t.float().expand(len(part))) for part in x.split(500)]
        logits = torch.cat(parts)
        where = "without noise" if level is None else f"at log-SNR {level} (t = {t.item():.3f})"
        found[f"class accuracy {where}"] = round((logits.argmax(1) == labels).double().mean().item(), 4)
        found[f"cross-entropy in nats {where}"] = round(F.cross_entropy(logits, labels).item(), 4)
    return {f"{len(images):,} test images": found}
