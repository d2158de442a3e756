"""32×32 digits of MNIST, conditional on the class (forty minutes on one CPU core).

A GPU has time for more, and for a network of 1.8 million parameters that sees every pixel by itself:

    python -m companion.train mnist --steps 40000 --batch 256 --width 40 --patch 1 --bf16 --compile

Trained on the first 40,000 training images: the classifier that reads and measures the samples knows only the others.
"""

import contextlib

import torch

from companion import data, gpu, metrics, processes, recipes, zoo
from companion.denoisers import Clipped
from companion.processes import rank
from companion.samplers import ddim, start
from companion.schedules import linspace
from companion.training import sample_grid

MODEL = {
    "net": {
        "class": "UNet",
        "arguments": {"channels": 1, "width": 32, "multipliers": [1, 2], "classes": 10, "patch": 2},
    },
    "schedule": {"class": "CosineVP", "arguments": {"s": 0.008}},
    "kind": "v",
}
IMAGES = 40000  # the classifier was trained on the other 20,000
READ = 500  # images at a time
BATCH = 250  # samples drawn at a time, of every class as many


def main(arguments):
    """Train, measure, and write ``mnist.safetensors`` with its card and a picture of samples."""
    options = conditional("mnist", __doc__, 8000)
    given = read(options, arguments)
    images, labels = data.mnist("train")
    model, seconds = fit(MODEL, given, images[:IMAGES], labels[:IMAGES])
    finish(model, given, options, MODEL, seconds, "Denoiser of 32×32 handwritten digits, conditional on the class")


def conditional(name, text, steps):
    """The options of a recipe whose model knows the class, those of its measurement among them."""
    return measured(parser(name, text, steps))


def measured(options):
    """The options with those of the measurement."""
    options.add_argument("--samples", type=int, default=10000, help="how many to measure, 20 to 10,000")
    options.add_argument("--evaluations", type=int, nargs="+", default=[50], help="of the network per sample")
    return options


def finish(model, given, options, description, seconds, words, **about):
    """Draw samples, each process its share, and measure them; write weights, picture and card, with ``about``."""
    with working_in(given):
        ts, rows = linspace(model.schedule, 50), torch.arange(100, device=gpu.device()) // 10
        picture = given.out / f"{given.name}.webp"
        sample_grid(model, picture, shape=(100, 1, 32, 32), ts=ts, seed=given.seed, cond=rows, columns=10)
        drawn = {n: draw(model, given.samples, n, given.seed + 1) for n in given.evaluations}
    figures = measure(drawn, given.samples)
    if rank():
        return
    card = {
        "description": f"{words} (10 = none given).",
        "data": f"MNIST (LeCun, Cortes & Burges, CC BY-SA 3.0), images 0 to {IMAGES:,} of the training split, "
        "padded to 32×32 with -1",
        "seconds": round(seconds),
        "grid": "A hundred samples, ten of each class: a row of zeros at the top, a row of nines at the bottom; "
        "50 evaluations by DDIM, no guidance.",
        "metrics": figures,
    }
    write(model, given, options, description, card | about)


@torch.no_grad()
def draw(model, count, evaluations, seed):
    """So many samples by DDIM without guidance, on the CPU; sample i is of class i mod 10."""
    shape, device = (min(BATCH, count), 1, 32, 32), gpu.device()
    ts, generator = linspace(model.schedule, evaluations), torch.Generator().manual_seed(seed)
    model.cond = torch.arange(shape[0], device=device) % 10
    run = gpu.compile_sampler(ddim, Clipped(model), model.schedule, ts, shape, device=device)
    noise = [start(model.schedule, ts, shape, generator=generator) for _ in range(0, count, BATCH)]
    drawn = torch.cat(processes.spread(lambda x: run(x.to(device)).cpu(), noise))[:count]
    model.cond = None
    return drawn


@torch.no_grad()
def measure(drawn, count):
    """How good samples are, each figure beside what as many real images give that no model was trained on.

    Every process reads its share of the images, and all have the figures: those of one process, bit for bit.
    """
    device = gpu.device()
    reader = zoo.load("mnist_classifier", device=device)
    train, test = ([part.to(device) for part in data.mnist(split)] for split in ("train", "test"))
    known, other = f"training images 0 to {count:,}", f"training images 10,000 to {10000 + count:,}"
    sets = {f"{count:,} samples, ddim, {n} evaluations": (x, torch.arange(count) % 10) for n, x in drawn.items()}
    sets[f"{count:,} test images"] = [part[:count] for part in test]
    sets[other] = [part[10000 : 10000 + count] for part in train]

    def features(images):
        return spread(reader.features, images)

    reference = features(train[0][:count])
    floor = metrics.frechet_distance(features(sets[other][0]), reference).item()
    found = {}
    for name, (images, labels) in sets.items():
        mine = features(images)
        precision, recall = metrics.precision_recall(reference, mine)
        distance = metrics.frechet_distance(mine, reference).item()
        right = (reader.decide(mine).argmax(1) == labels.to(device)).double().mean().item()
        found[name] = {
            "class accuracy, asked for against read by mnist_classifier": round(right, 4),
            f"Fréchet distance of features to {known}": round(distance, 4),
            f"the same, over that of {other}": round(distance / floor, 3),
            f"precision against {known} (k = 3)": round(precision, 4),
            f"recall of {known} (k = 3)": round(recall, 4),
        }
        if name != other:  # those lie among the 40,000
            apart = round(distance_to(images, train[0][:IMAGES]), 3)
            found[name][f"median distance in pixels to the nearest of {IMAGES:,} training images"] = apart
    return found


def distance_to(images, known):
    """The median over the images of the Euclidean distance to the nearest known one, pixels in [-1, 1]."""
    known = known.flatten(1)
    return spread(lambda x: torch.cdist(x.flatten(1), known).min(1).values, images).median().item()


def spread(function, images):
    """``function`` of all the images, so many at a time, every process some; on the device, in every process."""
    device = gpu.device()
    return torch.cat(processes.spread(lambda x: function(x.to(device)).cpu(), list(images.split(READ)))).to(device)


# ---- what the recipes for MNIST share -------------------------------------------------------------------------------


def parser(name, text, steps):
    """The options of a recipe that trains a U-Net on MNIST."""
    options = sizes(recipes.denoising(name, text, steps))
    options.add_argument("--grids", type=zoo.Path, help="a folder for a picture of samples every thousand steps")
    options.add_argument("--from-weights", type=zoo.Path, help="measure these averaged weights (.pt) and train nothing")
    options.add_argument("--seconds", type=float, help="with --from-weights: what their training took")
    options.add_argument("--hardware", help="with --from-weights: on what they were trained, in words")
    return options


def sizes(options, *, width=32, patch=2):
    """The options with those of the network's size."""
    options.add_argument("--width", type=int, default=width, help="channels of the network at full resolution")
    options.add_argument("--patch", type=int, default=patch, choices=(1, 2), help="1: no patches, and one level more")
    return options


def read(options, arguments):
    """The options given; weights that come ready must say how they came to be."""
    given = parsed(options, arguments)
    if len({value is None for value in (given.from_weights, given.seconds, given.hardware)}) > 1:
        options.error("--from-weights, --seconds and --hardware go together")
    return given


def parsed(options, arguments):
    """The options given; no more samples than there are images to compare with."""
    given = options.parse_args(arguments)
    if not 20 <= getattr(given, "samples", 20) <= 10000:
        options.error(f"--samples must lie between 20 and 10000; got {given.samples}")
    return given


def working_in(given):
    """The context in which the network works in the type asked for."""
    return torch.autocast(gpu.device().type, dtype=torch.bfloat16) if given.bf16 else contextlib.nullcontext()


def sized(description, given):
    """The model's description with the network's width and patches as the options say."""
    arguments = {**description["net"]["arguments"], "width": given.width, "patch": given.patch}
    arguments["multipliers"] = [1, 2] if given.patch == 2 else [1, 2, 2]
    return {**description, "net": {**description["net"], "arguments": arguments}}


def fit(description, given, images, labels=None, *, first=None, **how):
    """The averaged model after training, its weights rounded as they will be stored, and the seconds it took.

    It starts from the weights of the network ``first``, where that is given; ``how`` goes on to ``train``.
    """
    torch.manual_seed(given.seed)
    model = zoo.build(sized(description, given)).to(gpu.device())
    if first is not None:
        model.net.load_state_dict(first.state_dict())
    if given.from_weights:
        model.net.load_state_dict(torch.load(given.from_weights, map_location="cpu", weights_only=True))
        if given.compile:
            model.net.compile(dynamic=False)
        return recipes.rounded(model.eval().requires_grad_(False)), given.seconds

    def watch(progress, average):
        if given.grids and progress.step % 1000 == 0:
            picture, ts = given.grids / f"{progress.step:06}.webp", linspace(model.schedule, 50)
            rows = None if labels is None else torch.arange(40, device=gpu.device()) % 10
            sample_grid(average, picture, shape=(40, *images.shape[1:]), ts=ts, seed=given.seed, cond=rows)

    return recipes.averaged(model, given, images, cond=labels, watch=watch, **how)


def write(model, given, options, description, about):
    """Weights and card: what ``about`` has, and what the options say of the training."""
    names = [name for name in ("pairs", "walk") if hasattr(given, name)]  # of mnist_reflow alone
    card = {
        **recipes.provenance(given, gpu.device()),
        "model": sized(description, given),
        "recipe": recipes.command(options, given, "steps", "batch", "width", "patch", "lr", *names),
        "batch": given.batch,
        **about,
    }
    card |= {key: value for key in ("hardware", "remark") if (value := getattr(given, key, None))}
    zoo.save(given.name, model.net, card, given.out)
