"""Bad input: one table over every public function of the package; each refuses at once and names the argument."""

import importlib
import inspect

import pytest
import torch
from conftest import refuses

from companion import (
    autoencoding,
    bench,
    couplings,
    data,
    denoisers,
    drag,
    exercises,
    explore,
    figures,
    fokker_planck,
    forward,
    gpu,
    latent,
    likelihood,
    losses,
    metrics,
    nets,
    predictions,
    scenes,
    times,
    toy,
    training,
    verify,
    zoo,
)
from companion import samplers as A
from companion import schedules as S
from companion.nets import count

SCHEDULE, TABLE = S.CosineVP(), S.DiscreteVP.linear(10)
X, T, GRID = torch.zeros(3, 2), torch.tensor(0.5), torch.tensor([0.9, 0.5, 0.1])
UP, NAN = GRID.flip(0), float("nan")
MIXTURE = toy.GaussianMixture.four()
DENOISE = MIXTURE.denoiser(SCHEDULE)
MODEL = denoisers.Denoiser(nets.MLP(2, 8, 1), SCHEDULE, "v")
WHAT, CAPTION = torch.zeros(3, 7, dtype=torch.int64), "a small red circle"
VAE, PICTURES = nets.VAE(widths=(8,), blocks=1), torch.zeros(2, 3, 64, 64)


def walk(sampler, ts=UP, **options):
    return lambda: next(sampler(DENOISE, SCHEDULE, X, ts, **options))


TABLE_OF_ERRORS = {
    "toy.GaussianMixture": (lambda: toy.GaussianMixture([0.5, 0.6], [[0.0], [1.0]], stds=1.0), ValueError, "weights"),
    "toy.ImageMixture": (
        lambda: toy.ImageMixture([[0.5]], torch.zeros(1, 1, 1, 2, 2), torch.zeros(1, 1, 1, 1, 2, 2), 0.1),
        ValueError,
        "weights must be",
    ),
    "toy.EmpiricalDistribution": (lambda: toy.EmpiricalDistribution(X / 0), ValueError, "points must be finite"),
    "toy.LocalEmpirical": (lambda: toy.LocalEmpirical(torch.zeros(1, 1, 4, 4), 2), ValueError, "patch must be odd"),
    "toy.swiss_roll": (lambda: toy.swiss_roll(0), ValueError, "n must be"),
    "schedules.Schedule": (lambda: S.Schedule().alpha(T), TypeError, "must define alpha"),
    "schedules.LinearVP": (lambda: S.LinearVP(0.0), ValueError, "beta_min"),
    "schedules.SubVP": (lambda: S.SubVP(0.0), ValueError, "beta_min"),
    "schedules.CosineVP": (lambda: S.CosineVP(-1.0), ValueError, "s must be"),
    "schedules.DiscreteVP": (lambda: S.DiscreteVP([0.5, 0.9]), ValueError, "alphas_cumprod"),
    "schedules.LinearLogSNR": (lambda: S.LinearLogSNR(1.0, 2.0), ValueError, "most"),
    "schedules.VE": (lambda: S.VE(2.0, 1.0), ValueError, "sigma_max"),
    "schedules.RectifiedFlow": (lambda: S.RectifiedFlow().time_of(torch.tensor(NAN)), ValueError, "half_log_snr"),
    "schedules.linspace": (lambda: S.linspace(SCHEDULE, 0), ValueError, "steps"),
    "schedules.trailing": (lambda: S.trailing(SCHEDULE, 5), TypeError, "schedule"),
    "schedules.leading": (lambda: S.leading(TABLE, 11), ValueError, "steps"),
    "schedules.karras": (lambda: S.karras(SCHEDULE, 5, rho=0.0), ValueError, "rho"),
    "schedules.uniform_log_snr": (lambda: S.uniform_log_snr(SCHEDULE, 5, t_end=2.0), ValueError, "t_end"),
    "schedules.shifted": (lambda: S.shifted(GRID, 0.0), ValueError, "shift"),
    "schedules.rescale_zero_terminal_snr": (lambda: S.rescale_zero_terminal_snr(SCHEDULE), TypeError, "schedule"),
    "predictions.target_coefficients": (
        lambda: predictions.target_coefficients("noise", SCHEDULE, T),
        ValueError,
        "kind",
    ),
    "predictions.make_target": (lambda: predictions.make_target("v", X, X[:2], SCHEDULE, T), ValueError, "eps"),
    "predictions.to_x0_eps": (
        lambda: predictions.to_x0_eps("eps", X, X, SCHEDULE, torch.tensor(1.0)),
        ValueError,
        "'eps' does not determine",
    ),
    "predictions.to_x0": (
        lambda: predictions.to_x0("score", X, X, SCHEDULE, torch.tensor(1.0)),
        ValueError,
        "'score' does not determine",
    ),
    "forward.q_sample": (lambda: forward.q_sample(X, torch.ones(5), SCHEDULE), ValueError, "t must have shape"),
    "forward.q_posterior": (lambda: forward.q_posterior(X, X, T, T, SCHEDULE), ValueError, "s must be below t"),
    "forward.sde_coefficients": (lambda: forward.sde_coefficients(0.5, SCHEDULE), TypeError, "t must be"),
    "denoisers.Denoiser": (lambda: denoisers.Denoiser(None, SCHEDULE, "epsilon"), ValueError, "kind"),
    "denoisers.EDMPrecond": (lambda: denoisers.EDMPrecond(MODEL.net, SCHEDULE)(X, T + 0.5), ValueError, "t must be a"),
    "denoisers.Guided": (lambda: denoisers.Guided(DENOISE, torch.zeros(3), 2.0), TypeError, "null must be given"),
    "denoisers.ClassifierGuided": (
        lambda: denoisers.ClassifierGuided(lambda x, t: x, lambda x, t: x, 0),
        TypeError,
        "schedule must be given",
    ),
    "denoisers.AutoGuided": (lambda: denoisers.AutoGuided(DENOISE, DENOISE, NAN), ValueError, "guidance_scale"),
    "denoisers.Thresholded": (lambda: denoisers.Thresholded(DENOISE, 99.5), ValueError, "quantile"),
    "denoisers.reschedule": (
        lambda: denoisers.reschedule(DENOISE, S.LinearVP(), S.RectifiedFlow())(X, torch.tensor(1.0)),
        ValueError,
        "half_log_snr must lie between",
    ),
    "denoisers.Clipped": (lambda: denoisers.Clipped(DENOISE, 1.0, 0.0), ValueError, "low"),
    "losses.simple_loss": (lambda: losses.simple_loss(MODEL, X, torch.ones(2)), ValueError, "t must have shape"),
    "losses.flow_matching_loss": (
        lambda: losses.flow_matching_loss(MODEL, X, torch.ones(2)),
        ValueError,
        "t must have shape",
    ),
    "losses.continuous_elbo_weight": (lambda: losses.continuous_elbo_weight(SCHEDULE, 0.5), TypeError, "t must be"),
    "losses.elbo_weight": (lambda: losses.elbo_weight(SCHEDULE, T, "noise"), ValueError, "kind"),
    "losses.min_snr_weight": (lambda: losses.min_snr_weight(SCHEDULE, T, "v", 0.0), ValueError, "gamma"),
    "losses.p2_weight": (lambda: losses.p2_weight(SCHEDULE, T, "v", k=-1.0), ValueError, "k must be"),
    "losses.normal_kl": (lambda: losses.normal_kl(X, 1.0, X, 0.0), ValueError, "variance2"),
    "losses.discretized_gaussian_log_likelihood": (
        lambda: losses.discretized_gaussian_log_likelihood(X, X, 0.1),
        ValueError,
        "x must lie on the 256 levels",
    ),
    "losses.interpolated_variance": (lambda: losses.interpolated_variance(X, 0.0, 1.0), ValueError, "posterior_var"),
    "losses.step_weights": (lambda: losses.step_weights(SCHEDULE, UP), ValueError, "ts must"),
    "losses.continuous_elbo": (
        lambda: losses.continuous_elbo(MODEL, X, most=0.0, least=1.0),
        ValueError,
        "most must be above least",
    ),
    "losses.elbo": (lambda: losses.elbo(MODEL, X, ts=GRID, steps=0), ValueError, "steps"),
    "losses.hybrid_loss": (lambda: losses.hybrid_loss(MODEL, X, torch.ones(3), step=0), ValueError, "step"),
    "losses.bits_per_dim": (lambda: losses.bits_per_dim(X, 2, bin_width=0.0), ValueError, "bin_width"),
    "losses.implicit_score_matching": (
        lambda: losses.implicit_score_matching(lambda x: x[:, :1], X),
        ValueError,
        "score",
    ),
    "losses.sliced_score_matching": (
        lambda: losses.sliced_score_matching(lambda x: x[:, :1], X),
        ValueError,
        "score",
    ),
    "losses.denoising_score_matching": (
        lambda: losses.denoising_score_matching(lambda x, t: x[:, :1], X, T, SCHEDULE),
        ValueError,
        "score",
    ),
    "samplers.nodes": (lambda: A.nodes(SCHEDULE, UP, X), ValueError, "ts must decrease"),
    "samplers.ddim": (walk(A.ddim), ValueError, "ts must decrease"),
    "samplers.ancestral": (walk(A.ancestral, GRID, variance="small"), ValueError, "variance"),
    "samplers.euler": (walk(A.euler), ValueError, "ts must decrease"),
    "samplers.heun": (walk(A.heun), ValueError, "ts must decrease"),
    "samplers.dpm_solver_2s": (walk(A.dpm_solver_2s), ValueError, "ts must decrease"),
    "samplers.dpm_solver_3s": (walk(A.dpm_solver_3s), ValueError, "ts must decrease"),
    "samplers.plms": (walk(A.plms), ValueError, "ts must decrease"),
    "samplers.dpmpp_2m": (walk(A.dpmpp_2m), ValueError, "ts must decrease"),
    "samplers.dpm_solver_3m": (walk(A.dpm_solver_3m), ValueError, "ts must decrease"),
    "samplers.unipc": (walk(A.unipc, GRID, solver_order=4), ValueError, "solver_order must be one of"),
    "samplers.dpmpp_2m_sde": (walk(A.dpmpp_2m_sde, GRID, eta=-0.5), ValueError, "eta must lie"),
    "samplers.edm": (walk(A.edm, GRID, s_churn=-1.0), ValueError, "s_churn must be"),
    "samplers.nodes_at": (lambda: A.nodes_at(SCHEDULE, [99.0, NAN], X), ValueError, "half_log_snr must lie"),
    "samplers.euler_maruyama": (walk(A.euler_maruyama, GRID, kappa=-1.0), ValueError, "kappa"),
    "samplers.annealed_langevin": (walk(A.annealed_langevin, GRID, steps=0), ValueError, "steps"),
    "samplers.predictor_corrector": (walk(A.predictor_corrector, GRID, size=0.0), ValueError, "size"),
    "samplers.invert": (walk(A.invert, torch.tensor([0.5, 0.0])), ValueError, "ts must end"),
    "samplers.sample": (lambda: A.sample(DENOISE, SCHEDULE, X.long(), GRID), TypeError, "x must be"),
    "samplers.start": (lambda: A.start(SCHEDULE, [0.5, 0.1], (3, 2)), TypeError, "ts must be"),
    "samplers.moments": (lambda: A.moments(DENOISE, SCHEDULE, GRID, 0.0, -1.0), ValueError, "std must be"),
    "drag.score_field": (lambda: drag.score_field(MIXTURE, sigma=5.0, alt="a"), ValueError, "sigma must lie"),
    "drag.build": (lambda: drag.build(MIXTURE, sigma=0.0, alt="a"), ValueError, "sigma must lie"),
    "likelihood.ode_log_likelihood": (
        lambda: likelihood.ode_log_likelihood(DENOISE, SCHEDULE, X),
        ValueError,
        "t_start must be a time at which sigma > 0",
    ),
    "likelihood.hutchinson_divergence": (
        lambda: likelihood.hutchinson_divergence(torch.sin, X, X[:2]),
        ValueError,
        "probe",
    ),
    "likelihood.exact_divergence": (lambda: likelihood.exact_divergence(torch.zeros_like, X), TypeError, "field"),
    "likelihood.dequantize": (lambda: likelihood.dequantize(X), ValueError, "x must lie on the 256 levels"),
    "fokker_planck.evolve": (
        lambda: fokker_planck.evolve(lambda x, t: x, lambda t: 1.0, GRID, UP, GRID),
        ValueError,
        "times must",
    ),
    "nets.Classifier": (lambda: nets.Classifier(width=12), ValueError, "width"),
    "couplings.independent": (lambda: couplings.independent(X, X[:2]), ValueError, "noise and x0"),
    "couplings.optimal_transport": (
        lambda: couplings.optimal_transport(X, X, torch.zeros(2)),
        ValueError,
        "cond must have one",
    ),
    "couplings.reflow": (lambda: couplings.reflow(DENOISE, SCHEDULE, X, GRID, batch=0), ValueError, "batch must be"),
    "couplings.transport_cost": (lambda: couplings.transport_cost(X, X[:2]), ValueError, "noise and x0"),
    "couplings.straightness": (lambda: couplings.straightness(X[:, None], UP), ValueError, "ts must decrease"),
    "times.logit_normal": (lambda: times.logit_normal(scale=0.0), ValueError, "scale"),
    "times.uniform": (lambda: times.uniform(SCHEDULE, 0), ValueError, "n must be"),
    "times.antithetic": (lambda: times.antithetic(SCHEDULE, 0), ValueError, "n must be"),
    "times.Importance": (lambda: times.Importance(SCHEDULE, uniform_share=0.0), ValueError, "uniform_share"),
    "nets.CrossAttention": (lambda: nets.CrossAttention(8, 6, heads=3), ValueError, "channels must be a multiple"),
    "nets.Discriminator": (lambda: nets.Discriminator(width=12), ValueError, "width"),
    "nets.MLP": (lambda: nets.MLP(0), ValueError, "dim"),
    "nets.DiT": (lambda: nets.DiT(patch=5), ValueError, "patch must be"),
    "nets.TextEncoder": (lambda: nets.TextEncoder(9, 4, 8)(X.long()), ValueError, "tokens must be int64 of shape"),
    "nets.Reader": (lambda: nets.Reader(width=12), ValueError, "width"),
    "nets.VAE": (lambda: nets.VAE(widths=(12,)), ValueError, "widths"),
    "nets.VQVAE": (lambda: nets.VQVAE(codebook=0), ValueError, "codebook"),
    "nets.perplexity": (lambda: nets.perplexity(torch.arange(3), 2), ValueError, "indices must lie"),
    "nets.UNet": (lambda: nets.UNet(width=12), ValueError, "width"),
    "nets.place_embedding": (lambda: nets.place_embedding(2, 2, 6), ValueError, "dim"),
    "nets.timestep_embedding": (lambda: nets.timestep_embedding(torch.ones(3), 7), ValueError, "dim"),
    "nets.count.flops": (lambda: count.flops(nets.UNet(1, 8), X, T), ValueError, "x must have shape"),
    "nets.count.layer_cost": (
        lambda: count.layer_cost(torch.nn.Conv2d(2, 2, 3, groups=2), PICTURES, PICTURES),
        ValueError,
        "layer must have a square kernel and groups = 1",
    ),
    "nets.count.parameters": (lambda: count.parameters(DENOISE), TypeError, "net must be"),
    "training.EMA": (lambda: training.EMA(MODEL, 1.0), ValueError, "decay"),
    "training.sample_grid": (
        lambda: training.sample_grid(MODEL, "x.png", shape=(3, 2, 8, 8), ts=GRID),
        ValueError,
        "shape must be",
    ),
    "training.save_grid": (lambda: training.save_grid(X[:, 0], "x.png"), ValueError, "images must have shape"),
    "training.train": (lambda: next(training.train(MODEL, X / 0, steps=1)), ValueError, "x0 must be finite"),
    "training.budget": (lambda: training.budget(0, 0), ValueError, "full"),
    "data.digits": (lambda: data.digits("dev"), ValueError, "split"),
    "data.mnist": (lambda: data.mnist(size=30), ValueError, "size"),
    "data.parse_idx": (lambda: data.parse_idx(b"nonsense"), ValueError, "idx"),
    "scenes.scenes": (lambda: scenes.scenes(3, split="test"), ValueError, "split"),
    "scenes.describe": (lambda: scenes.describe(3, torch.Generator(), split="test"), ValueError, "split"),
    "scenes.held_out": (lambda: scenes.held_out(WHAT), ValueError, "what must be"),
    "scenes.exchanged": (lambda: scenes.exchanged(WHAT), ValueError, "what must be"),
    "scenes.canonical": (lambda: scenes.canonical(WHAT), ValueError, "what must be"),
    "scenes.agreement": (lambda: scenes.agreement(WHAT, WHAT[:2]), ValueError, "found and asked"),
    "scenes.captions": (lambda: scenes.captions(WHAT), ValueError, "what must be"),
    "scenes.tokens": (lambda: scenes.tokens(WHAT), ValueError, "what must be"),
    "scenes.parse": (lambda: scenes.parse([CAPTION]), ValueError, "caption must have 'on' or a relation"),
    "scenes.tokenize": (lambda: scenes.tokenize([CAPTION]), ValueError, "caption must have 'on' or a relation"),
    "scenes.place": (lambda: scenes.place(WHAT, torch.Generator()), ValueError, "what must be"),
    "scenes.draw": (lambda: scenes.draw(WHAT, torch.zeros(3, 2, 4)), ValueError, "what must be"),
    "autoencoding.drawn": (lambda: next(autoencoding.drawn(0)), ValueError, "batch"),
    "autoencoding.perceptual_distance": (
        lambda: autoencoding.perceptual_distance(None, PICTURES, PICTURES[:1]),
        ValueError,
        "x and y",
    ),
    "autoencoding.fit": (lambda: next(autoencoding.fit(VAE, [], steps=2, power=3)), ValueError, "power"),
    "autoencoding.quantized": (lambda: autoencoding.quantized(VAE, 0), ValueError, "codebook"),
    "autoencoding.latent_scale": (lambda: autoencoding.latent_scale(VAE, count=0), ValueError, "n must be"),
    "autoencoding.measured": (lambda: autoencoding.measured(VAE, None, count=0), ValueError, "n must be"),
    "autoencoding.reconstructed": (
        lambda: autoencoding.reconstructed(VAE, PICTURES[:, :1]),
        ValueError,
        "x must have shape",
    ),
    "autoencoding.psnr": (lambda: autoencoding.psnr(PICTURES, PICTURES[:1]), ValueError, "x and y"),
    "autoencoding.sharpness": (
        lambda: autoencoding.sharpness(PICTURES, scenes.scenes(3)),
        ValueError,
        "images and real.images",
    ),
    "latent.encoded": (lambda: latent.encoded(VAE, 0), ValueError, "n must be"),
    "latent.text_to_image": (
        lambda: latent.text_to_image(MODEL, torch.zeros(3, 12).long(), UP, x=X, guidance_scale=1),
        ValueError,
        "ts must decrease",
    ),
    "latent.image_to_image": (
        lambda: latent.image_to_image(MODEL, PICTURES, torch.zeros(3, 12).long(), GRID),
        ValueError,
        "images and tokens must be as many",
    ),
    "metrics.sliced_wasserstein": (lambda: metrics.sliced_wasserstein(X, X[:, :1]), ValueError, "y"),
    "metrics.mmd": (lambda: metrics.mmd(X / 0, X), ValueError, "x"),
    "metrics.median_distance": (lambda: metrics.median_distance(X[:0], X), ValueError, "x"),
    "metrics.frechet_distance": (lambda: metrics.frechet_distance(X[:1], X), ValueError, "x"),
    "metrics.precision_recall": (lambda: metrics.precision_recall(X, X, k=0), ValueError, "k must be"),
    "metrics.two_sample_test": (lambda: metrics.two_sample_test(X, X, permutations=0), ValueError, "permutations"),
    "bench.load": (lambda: bench.load("nothing"), ValueError, "name"),
    "zoo.card": (lambda: zoo.card("nothing"), ValueError, "name"),
    "zoo.load": (lambda: zoo.load("nothing"), ValueError, "name"),
    "zoo.build": (
        lambda: zoo.build({"net": {"class": "ResNet", "arguments": {}}, "schedule": {}, "kind": "v"}),
        ValueError,
        "net",
    ),
    "zoo.save": (lambda: zoo.save("x", MODEL.net, {}), ValueError, "card lacks"),
    "gpu.compile_train_step": (
        lambda: gpu.compile_train_step(torch.nn.Linear(1, 1), torch.zeros(3, 1), batch=0),
        ValueError,
        "batch",
    ),
    "gpu.compile_sampler": (
        lambda: gpu.compile_sampler(A.ddim, DENOISE, SCHEDULE, UP, (3, 2), device="cpu"),
        ValueError,
        "ts must decrease",
    ),
    "verify.verify": (lambda: verify.verify("forward", 1.0, 1.0), ValueError, "label"),
    "verify.extrapolated": (lambda: verify.extrapolated([]), ValueError, "rows must hold"),
    "exercises.check": (lambda: exercises.check("99.1", 1), ValueError, "exercise"),
    "figures.figure": (lambda: figures.figure(width=0.0), ValueError, "width"),
    "figures.show": (lambda: figures.show(figures.figure()[0], "", "text"), ValueError, "caption"),
    "figures.to_svg": (lambda: figures.to_svg("no figure"), TypeError, "fig"),
    "figures.image_grid": (lambda: figures.image_grid(None, torch.zeros(3, 8, 8), 3), (ValueError, TypeError), "image"),
    "figures.density": (lambda: figures.density(figures.figure()[1], None, (0, 0, 1, 1)), (ValueError, TypeError), ""),
    "explore.slider": (lambda: explore.slider(1, 0), ValueError, "lo"),
    "explore.choice": (lambda: explore.choice(["a"]), ValueError, "values"),
    "explore.typed": (lambda: explore.typed(["a", 1]), TypeError, "values"),
    "explore.explore": (lambda: explore.explore(lambda w: "x", w=[1, 2]), ValueError, "changes nothing"),
    "explore.build": (lambda: explore.build(lambda w: "x", v=[1, 2]), TypeError, "sliders"),
}

# What takes no argument that could be wrong, or is called by the functions above after their own checks.
EXEMPT = {
    "autoencoding": {"Fitted", "hinge_loss"},
    "bench": {"names"},
    "data": {"cache_folder"},
    "explore": {"Control", "Explorer", "check_alive", "dedupe"},
    "figures": {"style", "in_ipython", "text", "need_figure"},
    "forward": {"Gaussian", "Coefficients"},
    "gpu": {"device", "describe", "TrainStep"},
    "likelihood": {"Likelihood"},
    "losses": {"Bound", "StepWeights"},
    "metrics": {"PrecisionRecall"},
    "samplers": {
        "State",
        "Node",
        "Moments",
        "between",
        "fresh_noise",
        "added_noise",
        "transfer",
        "exponential_weights",
    },
    "scenes": {"Scenes", "signed_distance"},
    "times": {"Times"},
    "processes": {
        *("distributed", "joined", "rank", "world", "mean", "in_order", "spread"),
        *("shard", "local", "full", "gather", "newest", "save", "rest_of", "load"),
    },
    "training": {"Progress"},
    "zoo": {"names"},
}
MODULES = "toy schedules predictions forward denoisers losses samplers nets times training data metrics zoo gpu".split()
MODULES += ["bench", "verify", "exercises", "figures", "explore", "likelihood", "fokker_planck", "drag", "nets.count"]
MODULES += ["couplings", "processes"]
MODULES += ["scenes", "autoencoding", "latent"]


def public(name):
    module = importlib.import_module(f"companion.{name}")
    for key, value in vars(module).items():
        own = getattr(value, "__module__", "").startswith(f"companion.{name}")
        if own and not key.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value)):
            yield key


def test_the_table_is_complete():
    names = {f"{module}.{key}" for module in MODULES for key in public(module) if key not in EXEMPT.get(module, ())}
    assert names == set(TABLE_OF_ERRORS)


@pytest.mark.parametrize("name", TABLE_OF_ERRORS)
def test_refuses(name):
    call, error, message = TABLE_OF_ERRORS[name]
    with refuses(error, message):
        call()
