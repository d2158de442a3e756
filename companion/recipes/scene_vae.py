"""An autoencoder of 64×64 scenes with Gaussian latents, 48 times smaller (half an hour on one CPU thread)."""

import time

import torch

from companion import autoencoding, gpu, recipes, zoo

MODEL = {
    "net": {"class": "VAE", "arguments": {"channels": 3, "latent": 4, "widths": [32, 64, 96], "blocks": 1, "patch": 2}},
}


def parser(name, text, steps):
    """The options of the recipes of autoencoders."""
    options = recipes.options(name, text, steps)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--lr", type=float, default=1e-3)
    options.add_argument("--kl", type=float, default=4e-6, help="weight of the KL divergence, in nats a picture")
    options.add_argument("--start", type=zoo.Path, help="go on from these weights, a .safetensors file")
    options.add_argument("--remark", help="a sentence for the card")
    options.add_argument("--bf16", action="store_true", help="let the network work in bfloat16")
    return options


def trained(given, net):
    """An autoencoder after training on scenes drawn as it goes, rounded as it is stored; and the seconds it took."""
    from tqdm.auto import tqdm

    device = gpu.device()
    if given.start:
        from safetensors.torch import load_file

        net.load_state_dict({key: value.float() for key, value in load_file(given.start).items()})
    net, began = net.to(device), time.perf_counter()
    weights = {"kl": given.kl} if hasattr(net, "scale") else {}
    loop = autoencoding.fit(
        net,
        autoencoding.drawn(given.batch, seed=given.seed, device=device),
        steps=given.steps,
        lr=given.lr,
        seed=given.seed,
        bf16=given.bf16,
        **weights,
    )
    for step, terms in (bar := tqdm(loop, total=given.steps, desc="training", unit="step", mininterval=0.5)):
        if step % 100 == 0:
            bar.set_postfix({key: f"{value.item():.4g}" for key, value in terms.items()}, refresh=False)
    net = net.to("cpu").eval()
    if hasattr(net, "scale"):
        net.scale.copy_(autoencoding.latent_scale(net, seed=given.seed + 1))
    return net.half().float(), time.perf_counter() - began


def write(given, model, net, seconds, description):
    """Weights and card."""
    told = {key: getattr(given, key) for key in ("steps", "batch", "lr", "kl", "seed")}
    flags = "".join(f" --{key} {value}" for key, value in told.items()) + (" --bf16" if given.bf16 else "")
    zoo.save(
        given.name,
        net,
        {
            **({"remark": given.remark} if given.remark else {}),
            "description": description,
            "model": model,
            "recipe": f"python -m companion.train {given.name}{flags}",
            "data": "companion.data.scenes, split 'seen', drawn while training",
            **recipes.provenance(given, gpu.device()),
            "batch": given.batch,
            "seconds": round(seconds),
            "metrics": autoencoding.measured(net, zoo.load("scene_reader")),
        },
        given.out,
    )


def main(arguments):
    """Train, measure, and write ``scene_vae.safetensors`` with its card."""
    given = parser("scene_vae", __doc__, 4000).parse_args(arguments)
    torch.manual_seed(given.seed)
    net, seconds = trained(given, zoo.build(MODEL))
    write(
        given,
        MODEL,
        net,
        seconds,
        "Autoencoder of 64×64 scenes with Gaussian latents of 8×8×4, trained on the absolute error and the KL "
        "divergence alone: it has never seen the reader that judges it.",
    )
