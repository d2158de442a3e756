"""Wrong versions of the package's mathematics, each of which the tests must reject: ``python tests/mutants.py``.

A mutant is a small edit, such as a lost square or a sign, of one line of ``companion``. Each is made in a copy of the
package, and the tests that should notice run there. A mutant that they accept has survived: a test is missing.
"""

import argparse
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("companion", "tests", "notebooks", "pyproject.toml")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "site", ".ipynb_checkpoints")
LIMIT = 300  # seconds for one mutant's tests
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "--tb=line")
# Imported once, in the process that all test processes are forked from: nothing of the package itself.
PRELOADED = ["torch", "torch._decomp.decompositions_for_jvp", "pytest", "scipy.integrate", "scipy.stats", "jaxtyping"]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
ENVIRONMENT |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
# multiprocessing reads an exit code from a pipe, once; to start a process it looks at all others first. Without a lock
# two threads may read the same one, of which the second finds nothing there and takes the process for crashed (255).
ONE_AT_A_TIME = threading.Lock()


class Mutant(NamedTuple):
    """An edit of ``companion/file``: ``old``, found there exactly once, becomes ``new``; ``tests`` must notice."""

    file: str
    tests: tuple[str, ...]
    old: str
    new: str
    what: str


# ---- the list: (file, tests that must notice, [(original, replacement, what is wrong then)])

TOY, SCHEDULES, FORWARD, SAMPLERS = "test_toy.py", "test_schedules.py", "test_forward.py", "test_samplers.py"
MULTISTEP, PAPERS = "test_multistep.py", "test_multistep.py::test_equal_to_the_paper_on_a_ragged_table"
HERE, LOSSES, TIMES, TRAINING, IMAGES = (
    f"test_{name}.py" for name in ("mutants", "losses", "times", "training", "image_mixture")
)

GROUPS = [
    (
        "toy.py",
        [f"{TOY}::test_denoiser_and_density_are_integrals"],
        [
            ("0.5 * (along**2", "(along**2", "no half in a Gaussian's exponent"),
            ("(along**2 / variance +", "(along / variance +", "a lost square in a Gaussian's exponent"),
            ("alpha**2 * spread + sigma**2  #", "alpha * spread + sigma**2  #", "alpha for alpha² in the variance"),
            ("alpha**2 * spread + sigma**2  #", "alpha**2 * spread + sigma  #", "sigma for sigma² in the variance"),
            ("- alpha * means, axes)", "- means, axes)", "the diffused means not shrunk by alpha"),
            (
                "alpha * spread * along / variance, axes)",
                "spread * along / variance, axes)",
                "a denoiser without alpha",
            ),
            ("variance.sqrt() * noise", "variance * noise", "posterior draws with a variance for a deviation"),
        ],
    ),
    (
        "toy.py",
        [f"{TOY}::test_the_distribution_function_is_the_density_s_integral[0.8-0.6]"],
        [
            ("spread + sigma**2).sqrt())", "spread + sigma**2))", "a variance for a deviation in a share"),
            ("(x - alpha * means) /", "(x - means) /", "means that do not shrink in a share"),
        ],
    ),
    (
        "toy.py",
        [f"{TOY}::test_posterior_covariance_is_the_second_order_tweedie_formula[0.5-0.8]"],
        [
            ("return within + torch", "return within - torch", "the sign of what the components differ by"),
            ("* variance, axes, axes", "* variance.sqrt(), axes, axes", "deviations for variances of the components"),
            ("kde,kfe->...df", "ked,kfe->...df", "one of two axes transposed"),
        ],
    ),
    (
        "toy.py",
        [f"{TOY}::test_score_is_the_gradient_of_log_prob[8-0.6-0.8]"],
        [
            ("-along / variance, axes)", "along / variance, axes)", "the sign of the score"),
            ('kde->...kd", -along', 'ked->...kd", -along', "the axes of a tilted component transposed"),
        ],
    ),
    (
        "toy.py",
        [f"{TOY}::test_samples_have_the_stated_moments[0.6-0.8]"],
        [
            ("variance[chosen].sqrt() *", "variance[chosen] *", "samples with a variance for a deviation"),
            ("float(alpha) * self.means", "self.means", "noisy samples around means that did not shrink"),
            ("float(alpha) ** 2 *", "float(alpha) *", "alpha for alpha² in the samples' variance"),
            ("self.covariances + between", "self.covariances - between", "the sign of the between-component spread"),
        ],
    ),
    (
        "toy.py",
        [f"{SAMPLERS}::test_weak_order_of_the_noisy_sampler[0.0]"],
        [("stds[:, None, None] ** 2", "stds[:, None, None]", "deviations taken for variances")],
    ),
    (
        "toy.py",
        [f"{HERE}::test_density_and_responsibilities_against_scipy"],
        [
            ("(2 * math.pi * variance)", "(math.pi * variance)", "a lost 2 in a Gaussian's normalisation"),
            ("weights.log() - 0.5", "weights - 0.5", "weights where log-weights belong"),
            (
                "self._parts(x, alpha, sigma)[0], -1)\n\n    def score",
                "self._parts(x, sigma, alpha)[0], -1)\n\n    def score",
                "alpha and sigma exchanged",
            ),
        ],
    ),
    (
        "toy.py",
        [f"{HERE}::test_the_roll_is_an_archimedean_spiral"],
        [
            ("1.5 * math.pi * (1 + 2", "math.pi * (1 + 2", "the spiral starts a quarter turn early"),
            ("turn[:, None] *", "turn[:, None] ** 2 *", "a spiral whose radius grows with the square"),
        ],
    ),
    (
        "schedules.py",
        [f"{SCHEDULES}::test_log_snr_and_its_inverse[linear]"],
        [
            ("return 2 * self.half", "return self.half", "half the log-SNR for the whole"),
            ("self.alpha(t).log() - self", "self.alpha(t).log() + self", "a product for the ratio in lambda"),
            (
                "self.half_log_snr(middle) < target",
                "self.half_log_snr(middle) > target",
                "bisection walks the wrong way",
            ),
        ],
    ),
    (
        "schedules.py",
        [f"{FORWARD}::test_sde_published_forms"],
        [
            ("-0.5 * (self.beta_min", "-1 * (self.beta_min", "log alpha-bar for log alpha"),
            ("+ 0.5 * (self.beta_max", "+ (self.beta_max", "a lost half in the integral of beta"),
            ("return 1 - t\n", "return 1 - t**2\n", "a straight path that is bent"),
        ],
    ),
    (
        "schedules.py",
        [f"{SCHEDULES}::test_ends_and_monotony[linear]"],
        [
            ("(-torch.expm1(2 * self.log_alpha", "(-torch.expm1(self.log_alpha", "1 − alpha for 1 − alpha²"),
            ("(2 * self.log_alpha(t))).sqrt()", "(2 * self.log_alpha(t)))", "the variance for sigma (linear)"),
        ],
    ),
    (
        "schedules.py",
        [f"{SCHEDULES}::test_ends_and_monotony[cosine]"],
        [
            ("turn + 2 * self._start", "turn + self._start", "sin(a+b) with the offset b once"),
            ("math.pi / 2 * s / (1 + s)", "math.pi * s / (1 + s)", "the cosine not normalised to 1 at the data"),
        ],
    ),
    (
        "schedules.py",
        [f"{SCHEDULES}::test_table_is_exact_at_its_nodes_and_against_the_product"],
        [
            ("(0, 0, 1, 0)", "(0, 0, 0, 1)", "the table read one node late"),
            ("table.log() - torch.log1p", "table.log() + torch.log1p", "a product for the ratio in the table's SNR"),
            ("part = time - left\n", "part = time - left - 1\n", "interpolation one step off"),
            ("_variances(t)[0].sqrt()", "_variances(t)[0]", "alpha-bar for its root"),
            ("return 1 - self.alphas_cumprod", "return self.alphas_cumprod", "alpha_t for beta_t"),
        ],
    ),
    (
        "schedules.py",
        [f"{SCHEDULES}::test_ends_and_monotony[table-linear]"],
        [
            ("(-inside).sigmoid()", "(inside).sigmoid()", "the signal's variance for the noise's"),
            ("_variances(t)[1].sqrt()", "_variances(t)[1]", "the variance for sigma (table)"),
        ],
    ),
    (
        "schedules.py",
        [f"{SCHEDULES}::test_cosine_table_follows_the_curve_until_the_cap"],
        [
            ("dtype=torch.float64)) ** 2", "dtype=torch.float64))", "a cosine where its square belongs"),
            ("clamp(max=max_beta)", "clamp(max=1)", "a beta of 1 at the end of the cosine"),
        ],
    ),
    (
        "schedules.py",
        [f"{SCHEDULES}::test_zero_terminal_snr"],
        [
            (
                "linear = level * (1 - part)",
                "linear = level * (1 + part)",
                "signal left at the noisy end",
            ),
            ("(root[0] - root[-1])) ** 2)", "(root[0] - root[-1])))", "the rescaled table not squared"),
            ("* root[0] / (", "* root[-1] / (", "the rescaled table stretched to the wrong end"),
        ],
    ),
    (
        "schedules.py",
        [f"{HERE}::test_variance_grows_linearly_up_to_the_first_node"],
        [("= time * self._first", "= time**2 * self._first", "the first step's variance grows with the square")],
    ),
    (
        "schedules.py",
        [f"{HERE}::test_variance_exploding_is_geometric_between_its_ends"],
        [
            (
                "math.log(self.sigma_max / self.sigma_min)",
                "math.log(self.sigma_max * self.sigma_min)",
                "sigma_max missed",
            ),
            ("return self.sigma_min * torch", "return self.sigma_max * torch", "sigma starts at the wrong end"),
        ],
    ),
    (
        "schedules.py",
        [f"{SCHEDULES}::test_real_grids[linear-2-linspace]", f"{SCHEDULES}::test_real_grids[linear-2-karras]"],
        [
            ("t_end), steps + 1,", "t_end), steps,", "a grid one node short"),
            ("(0 if clean else 1)", "(1 if clean else 1)", "a grid one node too long where the end is clean"),
        ],
    ),
    (
        "schedules.py",
        [f"{SCHEDULES}::test_karras_and_uniform_spacing[linear]"],
        [
            ("lambda u: u**rho", "lambda u: u", "the power of the Karras grid not undone"),
            ("time_of(-ratios.log())", "time_of(ratios.log())", "the sign of lambda in a grid"),
        ],
    ),
    (
        "schedules.py",
        [f"{SCHEDULES}::test_integer_grids"],
        [
            (
                "T - torch.arange(steps + 1",
                "T - 1 - torch.arange(steps + 1",
                "a trailing grid that misses the last node",
            ),
            ("visited = 1 + torch", "visited = torch", "a leading grid that starts at the data"),
        ],
    ),
    (
        "schedules.py",
        [f"{HERE}::test_integer_grids_that_do_not_divide_the_table"],
        [
            ("* T / steps)", "* T // steps)", "trailing nodes rounded up, not to the nearest"),
            ("* (T // steps)", "* (T / steps)", "leading nodes between the integers"),
        ],
    ),
    (
        "schedules.py",
        [f"{HERE}::test_times_cover_a_schedule_that_starts_late"],
        [("schedule.t_min if t_end is None", "0.0 if t_end is None", "a grid that runs past t_min")],
    ),
    (
        "predictions.py",
        ["test_predictions.py::test_kinds_against_their_definitions"],
        [
            ("(t), -1 / sigma", "(t), 1 / sigma", "the sign of the score's target"),
            (
                "p, q = -sigma, alpha",
                "p, q = sigma, alpha",
                "the sign in v = alpha eps − sigma x0",
            ),
            (
                "= -sigma, alpha",
                "= -alpha, alpha",
                "alpha for sigma in v",
            ),
            (
                "p, q = schedule.alpha_rate(t), schedule",
                "p, q = schedule.alpha(t), schedule",
                "alpha for its rate in the velocity",
            ),
            ("return p * x0 + q", "return p * x0 - q", "the sign of the noise in a target"),
        ],
    ),
    (
        "predictions.py",
        ["test_predictions.py::test_round_trip[cosine-v]", "test_predictions.py::test_round_trip[cosine-eps]"],
        [
            ("alpha * q - sigma * p", "alpha * q + sigma * p", "the sign in the determinant"),
            ("like(sigma / determinant", "like(alpha / determinant", "alpha for sigma in x0_hat"),
            ("x) * x - check", "x) * x + check", "the sign in x0_hat"),
            ("like(p / determinant", "like(q / determinant", "q for p in eps_hat"),
            ("output - check", "output + check", "the sign in eps_hat"),
        ],
    ),
    (
        "forward.py",
        [f"{FORWARD}::test_q_sample_is_the_chain_of_single_steps"],
        [
            ("like(schedule.alpha(t), x0) * x0", "like(schedule.alpha(t) ** 2, x0) * x0", "alpha-bar for its root"),
            (
                "like(schedule.sigma(t), x0) * noise",
                "like(schedule.sigma(t) ** 2, x0) * noise",
                "noise scaled by sigma²",
            ),
            ("like(schedule.sigma(t), x0) * noise", "like(schedule.alpha(t), x0) * noise", "noise scaled by alpha"),
        ],
    ),
    (
        "forward.py",
        [f"{FORWARD}::test_posterior_is_bayes[cosine]"],
        [
            ("step**2 * sigma_s**2", "step * sigma_s**2", "a lost square in the variance a step adds"),
            ("(step * sigma_s**2 * x", "(step * sigma_s * x", "a lost square in the posterior mean"),
            ("alpha_s * added * x0", "alpha_t * added * x0", "the wrong time's alpha in the posterior mean"),
            (
                "added * sigma_s**2 / sigma_t**2",
                "added * sigma_s / sigma_t**2",
                "a lost square in the posterior variance",
            ),
        ],
    ),
    (
        "forward.py",
        [f"{FORWARD}::test_bad_arguments"],
        [("(s < t).all()", "(s <= t).all()", "a posterior at s = t")],
    ),
    (
        "forward.py",
        [f"{FORWARD}::test_sde_has_the_schedule_s_moments[cosine]"],
        [
            ("(2 * sigma * schedule", "(sigma * schedule", "a lost 2 in the derivative of sigma²"),
            ("- 2 * drift * sigma**2", "+ 2 * drift * sigma**2", "the sign of the drift in g²"),
            ("drift * sigma**2)", "drift * sigma)", "a lost square in g²"),
            ("clamp(min=0).sqrt()", "clamp(min=0)", "g² for g"),
        ],
    ),
    (
        "samplers.py",
        [f"{SAMPLERS}::test_eta_one_is_ancestral_is_the_posterior[cosine]"],
        [
            ("eta * then.sigma * math", "eta * now.sigma * math", "fresh noise scaled by this node's sigma"),
            ("math.sqrt(max(0.0, 1 - kept", "(max(0.0, 1 - kept", "a lost root in the fresh noise"),
            ("1 - kept**2", "1 - kept", "a lost square in the fresh noise"),
            ("then.sigma**2 - u**2", "then.sigma**2 + u**2", "fresh noise added to the kept, not taken from it"),
            ("then.sigma**2 - u**2", "then.sigma**2 - u", "a lost square in the kept noise"),
            ("return x + u * noise(x)", "return x + u**2 * noise(x)", "noise scaled by a variance"),
        ],
    ),
    (
        "samplers.py",
        [f"{SAMPLERS}::test_weak_order_of_the_noisy_sampler[0.5]"],
        [("return eta * then", "return eta**2 * then", "eta² for eta")],
    ),
    (
        "samplers.py",
        [f"{SAMPLERS}::test_ddim_is_euler_is_dpm_solver_1[cosine]"],
        [
            ("then.alpha - keep", "then.alpha + keep", "the sign of the signal already in x"),
            ("keep * now.alpha)\n", "keep * then.alpha)\n", "the wrong node's alpha in the map"),
            ("u**2)) / now.sigma", "u**2)) / now.alpha", "alpha for sigma in eps_hat"),
            (
                "now.t)\n        x = transfer(x, x0, now, then, fresh_noise(now, then, eta), noise)\n        yield",
                "then.t)\n        x = transfer(x, x0, now, then, fresh_noise(now, then, eta), noise)\n        yield",
                "the network asked at the next node",
            ),
            ("then.alpha - now.sigma / now", "then.alpha + now.sigma / now", "the sign of Euler's step"),
            ("x = then.alpha * (", "x = now.alpha * (", "Euler's result in the wrong node's units"),
            ("slope = (x - now.alpha * x0)", "slope = (x - x0)", "eps_hat without alpha"),
        ],
    ),
    (
        "samplers.py",
        [f"{SAMPLERS}::test_no_noise_on_the_last_step[cosine-ancestral]"],
        [('"posterior" or then.sigma == 0', '"posterior" or now.sigma == 0', "noise on the last step")],
    ),
    (
        "samplers.py",
        [f"{SAMPLERS}::TestDiffusers::test_ddpm[fixed_large-forward]"],
        [
            (
                "then.sigma / then.alpha) **",
                "then.sigma / now.alpha) **",
                "the forward variance without its step's alpha",
            )
        ],
    ),
    (
        "samplers.py",
        [f"{SAMPLERS}::test_inversion_returns[circle]"],
        [
            ("grid[::-1]", "grid[::1]", "inversion that walks down"),
            (
                "now.t)\n        x = transfer(x, x0, now, then)\n",
                "now.t)\n        x = transfer(x, x0, then, now)\n",
                "inversion with its nodes exchanged",
            ),
        ],
    ),
    (
        "samplers.py",
        [f"{SAMPLERS}::test_euler_maruyama_is_the_textbook_step"],
        [
            ("(1 + kappa**2)", "(1 + kappa)", "a noise level for its square"),
            ("0.5 * (1 + kappa", "(1 + kappa", "a lost half before the score"),
            ("* g**2\n        x = x + (then", "* g\n        x = x + (then", "g for g²"),
            ("kappa > 0 and then.sigma > 0", "kappa > 0 and now.sigma > 0", "noise at the clean end"),
            ("* g * math.sqrt(now.time", "* g * (now.time", "noise that grows like the step"),
            ("f * x - pull", "f * x + pull", "the score's sign in the reverse drift"),
        ],
    ),
    (
        "samplers.py",
        [f"{SAMPLERS}::test_langevin_keeps_its_own_variance_exactly[0.1]"],
        [
            ("math.sqrt(2 * delta)", "math.sqrt(delta)", "Langevin's noise without its 2"),
            ("x0 - x) / now.sigma**2", "x0 - x) / now.sigma", "a score divided by a deviation"),
            ("size * now.sigma**2", "size * now.sigma", "a step in the deviation"),
        ],
    ),
    (
        "samplers.py",
        [f"{SAMPLERS}::test_annealed_langevin_carries_x_over_alpha_and_ends_clean"],
        [
            ("now.alpha / last.alpha * x, now", "last.alpha / now.alpha * x, now", "carried the wrong way"),
            ("(denoise, now.alpha / last.alpha * x", "(denoise, now.alpha * x", "carried and never unscaled"),
        ],
    ),
    (
        "samplers.py",
        [f"{SAMPLERS}::test_predictor_corrector_is_a_predicted_step_and_langevin_steps[1.0]"],
        [
            ("denoise, x, then, steps", "denoise, x, now, steps", "corrected at the node it came from"),
            ("if then.sigma > 0:\n            x, x0", "if now.sigma > 99:\n            x, x0", "never corrected"),
        ],
    ),
    (
        "samplers.py",
        [f"{PAPERS}[heun-plain-0]", f"{PAPERS}[plms-plain-0]"],
        [
            ("0.5 * (_eps(x, x0, now) + other)", "(_eps(x, x0, now) + other)", "a sum of two slopes for their mean"),
            ("_eps(x, x0, now) + other", "_eps(x, x0, now) - other", "a difference of slopes for their sum"),
            ("other = _eps(ahead, denoise(ahead, then.t)", "other = _eps(ahead, denoise(x, then.t)", "the old x asked"),
            ("other = _eps(ahead, denoise(ahead, then.t)", "other = _eps(ahead, denoise(ahead, now.t)", "the old time"),
            ("alpha=-now.alpha) / now.sigma", "alpha=-now.alpha) / now.alpha", "eps_hat divided by alpha"),
            ("eps, alpha=-now.sigma)", "eps, alpha=now.sigma)", "the sign of the noise in x"),
            ("2: (3 / 2, -1 / 2)", "2: (1 / 2, 1 / 2)", "a mean of two slopes for their extrapolation"),
            ("-16 / 12, 5 / 12", "-15 / 12, 4 / 12", "coefficients of order 2 in PLMS's third step"),
            ("-59 / 24, 37 / 24", "-58 / 24, 36 / 24", "wrong coefficients in PLMS's later steps"),
            ("*past][:4]", "*past][:3]", "PLMS with three slopes"),
            ("if len(past) < 2:\n            x = _imp", "if len(past) < 1:\n            x = _imp", "no start for PLMS"),
        ],
    ),
    (
        "samplers.py",
        [f"{PAPERS}[dpm_solver_2s-plain-0]", f"{PAPERS}[dpm_solver_3s-plain-0]"],
        [
            ("(1 / 2,)", "(1 / 3,)", "DPM-Solver-2 with its middle at a third"),
            ("(1 / 3, 2 / 3)", "(1 / 3, 3 / 4)", "DPM-Solver-3 with its second point elsewhere"),
            ("[0.0, back / 3], 2 * back / 3)", "[0.0, back / 3], back / 3)", "weights for a third of the step"),
            ("[0.0, 2 * back / 3], back)", "[0.0, back / 3], back)", "the last weights for a nearer point"),
            ("back = now.half_log_snr - then", "back = now.half_log_snr + then", "a sum of lambdas for a step"),
            ("a + share * (b - a)", "a + share * b", "shares of the way counted from lambda = 0"),
            ("moment = step**power - power", "moment = step**power + power", "the sign in a moment"),
            ("-math.expm1(-step)", "-math.expm1(step)", "the density of eps_hat for that of x0_hat"),
            ("[eps, later]), now, two_thirds", "[later, eps]), now, two_thirds", "two weights exchanged"),
        ],
    ),
    (
        "samplers.py",
        [f"{MULTISTEP}::test_2m_extrapolates_to_the_middle[linear]"],
        [
            ("-0.5 * step / last", "-0.5 * last / step", "2M with its ratio of steps inverted"),
            ("-0.5 * step / last", "-step / last", "2M extrapolated all the way"),
            ("-0.5 * step / last", "0.5 * step / last", "2M looking back"),
        ],
    ),
    (
        "samplers.py",
        [f"{MULTISTEP}::test_third_order_is_exact_on_a_parabola[linear-dpm_solver_3m]"],
        [
            ("*past][:3]", "*past][:2]", "a third-order solver that remembers two"),
            ("step**power - power * moment", "step**power - moment", "moments without their factor"),
            ("x0 if first_order else _through(past, now", "x0 if first_order else _half_way(past", "2M for 3M"),
        ],
    ),
    (
        "samplers.py",
        [f"{PAPERS}[{name}-0]" for name in ("dpm_solver_3m-plain", "unipc-solver_order0", "unipc-solver_order1")],
        [
            ("better = 0.5 * (past[0][1] + x0)", "better = 0.5 * past[0][1] + x0", "a lost bracket in UniC-1"),
            ("_through([(now, x0), *past], past", "_through([*past], past", "a corrector without the new x0_hat"),
            ("x = transfer(left, better", "x = transfer(x, better", "corrected from where it had come to"),
            ("*past][:solver_order]", "*past][:2]", "UniPC of order 2 whatever is asked"),
        ],
    ),
    (
        "samplers.py",
        [
            f"{MULTISTEP}::test_from_an_empty_start_to_clean_data[cosine-{name}]"
            for name in ("dpmpp_2m", "dpm_solver_3m")
        ],
        [
            ("len(past) < 2 or then.sigma == 0", "len(past) < 2 or now.sigma == 0", "a line followed to lambda = inf"),
            (
                "now.alpha == 0 or then.sigma == 0  #",
                "now.alpha == 0 or now.sigma == 0  #",
                "a parabola followed to inf",
            ),
        ],
    ),
    (
        "samplers.py",
        [f"{MULTISTEP}::test_between_is_at_its_shares_of_lambda_and_nowhere_at_the_ends"],
        [
            (
                "math.inf if self.alpha > 0 else -math.inf",
                "math.inf if self.alpha >= 0 else -math.inf",
                "+inf at the start",
            ),
            ("x.new_full((), time)", "x.new_full((), alpha)", "a node asked for at another time"),
        ],
    ),
    (
        "samplers.py",
        [f"{PAPERS}[edm-s_churn-0]", f"{PAPERS}[edm-s_churn-s_tmin-s_tmax-s_noise-0]"],
        [
            ("math.log1p(gamma)", "gamma", "gamma for log(1 + gamma)"),
            ("half_log_snr - math.log1p", "half_log_snr + math.log1p", "churn that lowers the level"),
            ("s_churn / (len(grid) - 1)", "s_churn / len(grid)", "nodes for steps in EDM's gamma"),
            ("math.sqrt(2) - 1)", "math.sqrt(2))", "EDM's gamma with another limit"),
            ("up.alpha / now.alpha * x", "up.alpha * x", "x shrunk from alpha = 1 on the way up"),
            ("s_noise * added_noise(up, now)", "s_noise * added_noise(up, now) ** 2", "churn by a variance"),
            ("s_noise * added_noise", "s_noise**2 * added_noise", "s_noise squared"),
            ("now.sigma / now.alpha <= s_tmax", "now.sigma <= s_tmax", "s_tmax in units of sigma"),
            ("            now = up\n", "            pass\n", "the network asked at the level left"),
        ],
    ),
    (
        "samplers.py",
        [f"{PAPERS}[dpmpp_2m_sde-plain-0]"],
        [
            (
                "_half_way(past, then), now, then, fresh_noise(now, then, eta), noise",
                "_half_way(past, then), now, then, fresh_noise(now, then, 0), noise",
                "a 2M SDE solver without noise",
            ),
        ],
    ),
    (
        "samplers.py",
        [f"{SAMPLERS}::test_bad_grids"],
        [("(ts[1:] < ts[:-1])", "(ts[1:] <= ts[:-1])", "a grid that stands still")],
    ),
    (
        "samplers.py",
        [f"{HERE}::test_walks_start_with_the_first_node_s_sigma"],
        [("schedule.sigma(ts[:1]", "schedule.sigma(ts[-1:]", "a start with the last node's sigma")],
    ),
    (
        "denoisers.py",
        ["test_denoisers.py::test_every_kind_finds_the_point", "test_denoisers.py::test_clipped_recomputes_eps"],
        [
            ("cond), x, self.schedule, t)", "cond), x, self.schedule, 0.9 * t)", "an output read at another time"),
            ("self.low, self.high)\n", "self.low)\n", "a clamp with no upper end"),
        ],
    ),
    (
        "denoisers.py",
        [f"{HERE}::test_a_denoiser_asks_for_the_class_it_was_given"],
        [("if cond is None else cond", "if cond is not None else cond", "a class given with the call lost")],
    ),
    (
        "losses.py",
        [f"{HERE}::test_the_loss_is_the_mean_squared_error_of_each_kind"],
        [
            ("denoiser.target(x0, noise", "denoiser.target(x, noise", "a target made from the noisy sample"),
            ("output(x, t, cond)", "output(x0, t, cond)", "a network shown the clean sample"),
            (".square().mean()", ".square().sum()", "a sum for a mean"),
            (".square().mean()", ".abs().mean()", "an absolute error for a squared one"),
            ("(x, t, cond) - target", "(x, t, cond) + target", "the sign of the error"),
        ],
    ),
    (
        "training.py",
        ["test_training.py::test_ema_is_the_weighted_mean"],
        [
            ("return 1 - decay", "return decay", "an average that follows instead of remembering"),
            ("min(self.decay, (1", "max(self.decay, (1", "the warm-up of the average's decay turned round"),
        ],
    ),
    (
        "training.py",
        [f"{HERE}::test_the_average_forgets_its_start"],
        [
            ("self.updates += 1", "self.updates += 2", "the average's steps counted twice"),
            ("(10 + self.updates)", "(9 + self.updates)", "an average that starts one step late"),
        ],
    ),
    (
        "times.py",
        [f"{TIMES}::test_antithetic_times_are_even"],
        [
            ("device=device) + shift) / n", "device=device) - shift) / n", "strata shifted out of the schedule"),
            ("t_max - 1).float() + 1", "t_max - 1).float()", "integer times 0 … T−1"),
        ],
    ),
    (
        "times.py",
        [f"{HERE}::test_times_cover_a_schedule_that_starts_late"],
        [("t_max - schedule.t_min)).float", "t_max + schedule.t_min)).float", "times beyond the schedule's end")],
    ),
    (
        "training.py",
        [f"{HERE}::test_the_learning_rate_warms_up_and_ends_along_a_cosine"],
        [
            ("0.5 * (1 + math", "0.5 * (1 - math", "a learning rate that grows along the cosine"),
            ("(step - 1) / steps", "step / steps", "the cosine one step early"),
            ("min(1.0, step", "max(1.0, step", "a warm-up that overshoots"),
        ],
    ),
    (
        "gpu.py",
        [f"{HERE}::test_classes_stay_with_their_samples_and_a_share_is_dropped"],
        [
            ("device=device) < drop_cond", "device=device) > drop_cond", "the share that keeps its class dropped"),
            ("return (x0[chosen[mine]]", "return (x0[:batch][mine]", "samples parted from their classes"),
        ],
    ),
    (
        "metrics.py",
        ["test_metrics.py::test_one_dimension_is_exact_for_any_two_numbers_of_points"],
        [
            ("** (1 / p)", "** (p)", "the root of the distance lost"),
            (".abs().pow(p).mean(1)", ".abs().mean(1)", "the power in the distance lost"),
            (".pow(p).mean(1)", ".pow(p).sum(1)", "a sum for a mean over points"),
            ("left // m]", "left // n]", "quantiles read at the wrong nodes"),
        ],
    ),
    (
        "metrics.py",
        ["test_metrics.py::test_two_points_have_the_moments_of_the_sphere[5-2]"],
        [("normalize(theta, dim=1)", "normalize(theta, dim=0)", "directions that are not on the sphere")],
    ),
    (
        "metrics.py",
        ["test_metrics.py::test_mmd_agrees_with_the_sum_over_pairs"],
        [
            ("within_y - 2 * _kernel", "within_y - _kernel", "a lost 2 on the cross term"),
            ("bandwidth) - own * n) /", "bandwidth) + own * n) /", "each point's kernel with itself added twice"),
            ("(m * (m - own))", "(m * m)", "the biased count of pairs"),
            ("squares - 2 * part", "squares + 2 * part", "the sign in |a − b|²"),
            ("block.div(-2)", "block.div(-1)", "a lost 2 in the kernel"),
        ],
    ),
    (
        "metrics.py",
        ["test_metrics.py::test_bandwidth_is_the_median_distance"],
        [("(together).median()", "(together).mean()", "the mean distance for the median")],
    ),
    (
        "metrics.py",
        ["test_metrics.py::test_p_value_counts_the_observed_labelling_and_ties"],
        [
            ("values >= values[0]", "values > values[0]", "ties not counted"),
            ("values >= values[0]", "values <= values[0]", "the wrong tail"),
            ("double().mean())", "double()[1:].mean())", "the observed labelling not counted"),
        ],
    ),
    (
        "verify.py",
        ["test_verify.py::test_wrong_fails", "test_verify.py::test_one_bad_element_fails"],
        [
            ("difference = np.abs(lhs - rhs)", "difference = (lhs - rhs)", "differences with a sign"),
            ("not ratio.max() <= 1", "not ratio.min() <= 1", "one good element excuses the others"),
            ("difference, math.inf)", "difference, 0.0)", "a side that is not finite counts as right"),
        ],
    ),
    (
        "verify.py",
        [f"{HERE}::test_verify_draws_its_lines_where_it_says"],
        [
            ("MARGIN = 5.0", "MARGIN = 4.0", "wrong versions that miss by four tolerances pass"),
            ("ratio.max() <= 1", "ratio.max() <= 2", "two tolerances allowed"),
            ("np.abs(rhs), 0.0)", "np.abs(lhs), 0.0)", "a tolerance relative to the side on trial"),
            ('"atol", 0.0) + given', '"atol", 0.0) * given', "the absolute and relative tolerances multiplied"),
        ],
    ),
    (
        "verify.py",
        [f"{HERE}::test_the_statistical_tolerance_is_bonferroni_s"],
        [
            ("max(4.0, -torch", "max(3.0, -torch", "less than four standard errors"),
            ("max(4.0, -torch", "min(4.0, -torch", "no more tolerance for many elements"),
            ("0.5e-4 / lhs", "1e-4 / lhs", "one tail of two"),
            ("0.5e-4 / lhs.size", "0.5e-4 * lhs.size", "Bonferroni turned round"),
        ],
    ),
    (
        "data.py",
        ["test_data.py::test_digits_are_in_range_and_the_split_is_fixed"],
        [
            ("unsqueeze(1) / 8 - 1", "unsqueeze(1) / 16 - 1", "digits scaled to [−1, 0]"),
            ("slice(1500, None)", "slice(1499, None)", "a test image that was trained on"),
        ],
    ),
    (
        "data.py",
        ["test_data.py::test_fetches_once_then_reads_the_cache[test]"],
        [
            ("div_(127.5)", "div_(128)", "bytes that never reach 1"),
            ("(size - 28) // 2", "(size - 28) // 4", "a picture off the centre"),
        ],
    ),
    (
        "data.py",
        ["test_data.py::test_parse_idx_reads_any_shape"],
        [('">u4"', '"<u4"', "lengths read from the wrong end")],
    ),
    (
        "nets/embedding.py",
        ["test_nets.py::test_embedding_against_its_definition"],
        [
            ("exp(-math.log", "exp(math.log", "frequencies that grow past 1"),
            ("/ (dim // 2)", "/ (dim)", "half the range of periods"),
            ("angles.sin()]", "angles.cos()]", "cosines twice, and no sines"),
        ],
    ),
    (
        "nets/mlp.py",
        [f"{HERE}::test_time_scale_multiplies_the_time"],
        [("(self.time_scale * t,", "(t,", "a time that is not scaled up (MLP)")],
    ),
    (
        "nets/embedding.py",
        [f"{HERE}::test_time_scale_multiplies_the_time"],
        [("(self.time_scale * t,", "(t,", "a time that is not scaled up (U-Net, transformer)")],
    ),
    (
        "nets/unet.py",
        [f"{HERE}::test_residual_block_against_its_definition"],
        [
            ("(1 + scale) + shift", "(scale) + shift", "a scale that starts at 0, not at 1"),
            ("(1 + scale) + shift", "(1 + scale) - shift", "the sign of the shift"),
            ("self.skip(x) + h", "self.skip(x) - h", "the sign of the residual"),
        ],
    ),
    (
        "nets/unet.py",
        [f"{HERE}::test_attention_against_its_definition"],
        [
            ("x = x + self.out", "x = self.out", "attention without its skip"),
            ("attention(q, k, v)", "attention(k, q, v)", "queries and keys exchanged"),
            ("channels // head)", "channels // (2 * head))", "half as many heads"),
        ],
    ),
    (
        "nets/unet.py",
        ["test_nets.py::test_attention_follows_every_block_of_the_levels_asked_for"],
        [
            (
                "return self.attention(super().forward(x, emb), *words)",
                "return (super().forward(x, emb), *words)[0]",
                "attention at a level that is there and not used",
            ),
        ],
    ),
    (
        "nets/dit.py",
        ["test_nets.py::test_the_transformer_against_its_definition[2-4-3]"],
        [
            ("shift, scale, gate, shift_mlp", "scale, shift, gate, shift_mlp", "shift and scale exchanged"),
            ("gate * self.attend(", "(1 + gate) * self.attend(", "a gate that starts open"),
            (
                "return x + gate_mlp * self.mlp(self.norm(x) * (1 + scale_mlp)",
                "return gate_mlp * self.mlp(self.norm(x) * (1 + scale_mlp)",
                "a block without its residual",
            ),
            ("(1 + scale_mlp)", "scale_mlp", "a scale that starts at 0 in a block's second half"),
            ('GELU("tanh")', 'GELU("none")', "the exact GELU for the paper's"),
            ("attention(*self.ask(x))", "attention(*self.ask(x).flip(0))", "queries and values exchanged"),
            (
                "(3, self.heads, -1)).permute(2, 0, 3, 1, 4)",
                "(3, self.heads, -1)).permute(2, 0, 1, 3, 4)",
                "heads that attend to each other, not tokens",
            ),
            ("self.norm(tokens) * (1 + scale)", "self.norm(tokens) * scale", "a last scale that starts at 0"),
            (".mT + self.places", ".mT", "tokens without positions"),
        ],
    ),
    (
        "nets/dit.py",
        ["test_nets.py::test_the_transformer_starts_as_the_identity_and_its_gates_learn_first"],
        [('endswith((".adaln"', 'endswith(("1.adaln"', "a gate left open")],
    ),
    (
        "nets/dit.py",
        ["test_nets.py::test_one_attention_over_both_is_a_mixture_of_two"],
        [
            ("(words, found[:, :, tokens:]", "(words, found[:, :, :-tokens]", "the patches' answers for the words"),
            ("zip(asked, asked_by_words", "zip(asked, asked", "patches that see themselves twice, and no words"),
        ],
    ),
    (
        "nets/text.py",
        ["test_nets.py::test_cross_attention_against_its_definition"],
        [("self.q(self.norm(x))", "self.q(x)", "queries from places that are not normalised")],
    ),
    (
        "nets/text.py",
        ["test_nets.py::test_a_text_says_what_to_show[dit]"],
        [("self.word(tokens) + self.places", "self.word(tokens)", "words without an order")],
    ),
    (
        "samplers.py",
        ["test_samplers.py::test_moments_are_those_of_many_walks"],
        [
            (
                "rows[-1] += float(std)",
                "rows[-1] += float(std) ** 2",
                "a variance for a deviation in the exact moments",
            ),
            ("(state.x - mean)[:, 0]", "state.x[:, 0]", "second moments about the origin"),
            ("apart[:, -1] / spread", "apart[:, -1] / spread**2", "a covariance over a variance for a correlation"),
        ],
    ),
    (
        "toy.py",
        ["test_toy.py::test_a_quantile_has_its_share_below_it[0.8-0.6]"],
        [
            (
                "torch.where(below, middle, low), torch.where(below,",
                "torch.where(below, low, middle), torch.where(below,",
                "a bisection that keeps the wrong half",
            )
        ],
    ),
    (
        "verify.py",
        ["test_verify.py::test_extrapolation_removes_every_power_that_the_rows_can_show"],
        [("(2**order - 1) for", "2**order for", "an extrapolation that is not an average")],
    ),
    (
        "nets/embedding.py",
        ["test_nets.py::test_places_against_their_definition"],
        [
            ("for n in (rows, columns)", "for n in (columns, columns)", "columns told twice, and no rows"),
            ("across.repeat(height, 1)", "across.repeat_interleave(height, 0)", "columns in the order of the rows"),
        ],
    ),
    (
        "nets/unet.py",
        ["test_nets.py::test_every_pixel_of_a_unet_is_told_its_place"],
        [
            ("h = h + table", "h = table", "places in the pixels' stead"),
            (".to(h.dtype)  # autocast", ".float()  # autocast", "places that take the network out of half precision"),
        ],
    ),
    (
        "nets/unet.py",
        ["test_nets.py::test_a_unet_s_heads_are_those_of_an_independent_library"],
        [("max(1, channels // head)", "max(1, channels // 32)", "heads of one width, whatever was asked for")],
    ),
    (
        "nets/embedding.py",
        ["test_nets.py::test_weights_of_a_network_without_text_serve_one_with_it[dit]"],
        [("nn.init.zeros_(self.whole.weight)", "nn.init.ones_(self.whole.weight)", "a text heard before training")],
    ),
    (
        "denoisers.py",
        ["test_guidance.py::test_a_network_with_text_is_guided_away_from_no_text"],
        [('"text", None) is None else 1)', '"text", None) is None else 2)', "a text for all taken for one a sample")],
    ),
    (
        "nets/autoencoder.py",
        ["test_autoencoders.py::test_the_divergence_from_the_prior"],
        [("/ 2 - self.std.log()", "/ 2 + self.std.log()", "the sign of the entropy in a divergence")],
    ),
    (
        "nets/autoencoder.py",
        ["test_autoencoders.py::test_the_variance_stays_in_its_bounds"],
        [("10.0) / 2).exp()", "10.0)).exp()", "a variance for a deviation")],
    ),
    (
        "nets/autoencoder.py",
        ["test_autoencoders.py::test_the_scale_is_stored_and_brings_latents_to_deviation_one"],
        [("decode(z / self.scale)", "decode(z * self.scale)", "latents scaled twice")],
    ),
    (
        "nets/autoencoder.py",
        ["test_autoencoders.py::test_the_gradient_goes_straight_through"],
        [
            ("z + (entries - z).detach()", "z + (entries - z)", "a gradient that ends at the codebook"),
            ("mse_loss(z, entries.detach())", "mse_loss(z, entries)", "a codebook that learns from the commitment"),
        ],
    ),
    (
        "nets/autoencoder.py",
        ["test_autoencoders.py::test_dead_entries_restart_on_latents"],
        [("(used[:, None], self.codebook, drawn)", "(used[:, None], drawn, self.codebook)", "the living restarted")],
    ),
    (
        "nets/count.py",
        ["test_nets.py::test_the_unet_s_count_from_the_shapes_of_its_layers"],
        [("counter.get_total_flops()", "counter.get_total_flops() // 2", "a multiplication and addition as one")],
    ),
    (
        "_empirical.py",
        ["test_empirical.py::test_points_are_a_mixture_without_spread[0.6-0.8]"],
        [
            ("alpha / sigma**2 * (products", "alpha / sigma * (products", "a lost square under the logits"),
            ("- alpha / 2 * self._squares", "- self._squares / 2", "|x_i|² without alpha in the logits"),
            ("- alpha / 2 * self._squares", "- alpha * self._squares", "no half on |x_i|² in the logits"),
            ("moved = rows - alpha * self._centre", "moved = rows - self._centre", "a middle that does not shrink"),
            ("pulls = (alpha * self._mean", "pulls = (self._mean", "a score without alpha"),
            ("1)) - rows) / sigma**2", "1)) - rows) / sigma", "a lost square under the score"),
            ("(logits, 1) - math.log(n)", "(logits, 1) + math.log(n)", "the sign of the points' weight in the density"),
            ("normal = d / 2 *", "normal = d *", "a lost half in the density's normalisation"),
        ],
    ),
    (
        "_empirical.py",
        [
            "test_empirical.py::test_windows_against_brute_force[0.8-0.6-3-True]",
            "test_empirical.py::test_windows_against_brute_force[0.8-0.6-3-False]",
        ],
        [
            ("pull = (alpha / sigma**2)", "pull = (alpha / sigma)", "a lost square under the windows' logits"),
            ("(-alpha[:, None, None] / 2 * pull)", "(-alpha[:, None, None] * pull)", "no half on a window's square"),
            ("(x.double() - alpha", "(x.double() + alpha", "windows moved away from the middle"),
            ("else (*key, row, column)", "else (*key, row)", "positions of a row that always compete"),
            ("max(0, reach - (length - 1 - place))", "max(0, reach - (length - place))", "a border one pixel late"),
        ],
    ),
    (
        "exercises.py",
        ["test_exercises.py::test_solution_is_accepted"],
        [
            (
                "variance = (1 - beta) * variance + beta",
                "variance = (1 + beta) * variance + beta",
                "signal that grows with the noise",
            ),
            ("betas[s + 1 :]", "betas[s:]", "a product one factor too long"),
            ("- 0.5 * math.log(2", "- math.log(2", "a Gaussian's entropy without its half"),
            ("** 2 / spread**2", "** 2 / spread", "a lost square in the variance of a DDIM step"),
        ],
    ),
    (
        "toy.py",
        [f"{HERE}::test_posterior_draws_take_one_noise_level_per_sample"],
        [
            (
                "(v[..., None, None] if v.ndim",
                "(v[..., None] if v.ndim",
                "a level for each row read as one for each component",
            )
        ],
    ),
    (
        "toy.py",
        [f"{HERE}::test_weights_sum_to_one"],
        [("sum().item() - 1) > 1e-6", "sum().item() - 1) > 1e-1", "weights that do not sum to one")],
    ),
    (
        "schedules.py",
        [f"{HERE}::test_the_first_value_that_is_not_allowed", f"{HERE}::test_the_last_values_that_are_allowed"],
        [
            ("if beta_max < beta_min", "if beta_max <= beta_min", "a constant beta refused"),
            ("if sigma_max <= sigma_min", "if sigma_max < sigma_min", "noise that does not explode"),
            ("(table[0] < 1 and", "(table[0] <= 1 and", "a first node without noise"),
            ("<= end < start", "<= end <= start", "a grid without a step"),
            ("1e-9 * (1 + target", "1e-1 * (1 + target", "a time for log-SNRs outside the schedule"),
        ],
    ),
    (
        "schedules.py",
        [f"{HERE}::test_grids_go_from_80_to_a_five_hundredth_where_the_ends_are_empty_and_clean"],
        [
            ("most = sigma_max if empty", "most = 1 / sigma_max if empty", "the noisiest ratio upside down"),
            ("least = sigma_min if clean", "least = sigma_min**2 if clean", "a variance for the cleanest ratio"),
        ],
    ),
    (
        "samplers.py",
        [f"{HERE}::test_the_first_value_that_is_not_allowed", f"{HERE}::test_the_last_values_that_are_allowed"],
        [
            ("min(sigmas[:-1]) <= 0", "min(sigmas[:-1]) < 0", "a division by a node's sigma of 0"),
            ("ts[-1] >= schedule.t_min", "ts[-1] >= -schedule.t_min", "a walk past the schedule's clean end"),
            ("ts[0] <= schedule.t_max", "ts[0] < schedule.t_max", "no walk from the schedule's noisy end"),
        ],
    ),
    (
        "samplers.py",
        [f"{HERE}::test_noise_is_drawn_once_a_step_and_never_for_nothing"],
        [("noise(x) if u > 0", "noise(x) if u >= 0", "noise drawn where none is used")],
    ),
    (
        "gpu.py",
        [f"{HERE}::test_gradients_are_clipped_to_the_given_norm"],
        [("parameters(), clip)", "parameters(), clip**2)", "gradients clipped to a squared norm")],
    ),
    (
        "losses.py",
        [f"{LOSSES}::test_on_gaussian_data_the_terms_are_the_kl_between_paths"],
        [
            ("-0.5 * log_snr_s", "-1.0 * log_snr_s", "a lost half in a step's weight"),
            ("-0.5 * log_snr_s", "0.5 * log_snr_s", "the sign of a step's weight"),
            ("expm1(log_snr_t - log_snr_s)", "expm1(log_snr_s - log_snr_t)", "a step's two ends exchanged"),
            ("2 * (schedule.sigma(s).log", "(schedule.sigma(s).log", "a ratio of deviations for one of variances"),
            ("weight * shrink.exp()", "weight / shrink.exp()", "the wider variance raises the weight"),
            ("expm1(shrink) - shrink", "expm1(shrink) + shrink", "the sign in a step's constant"),
            ("0.5 * (torch.expm1(shrink)", "(torch.expm1(shrink)", "a lost half in a step's constant"),
            ('1.0 if variance == "forward" else 0.0', '0.0 if variance == "forward" else 1.0', "variances exchanged"),
            ("normal_kl(alpha * x0", "normal_kl(x0", "a prior around data that did not shrink"),
            ("sigma_clean / alpha_clean", "sigma_clean", "a reconstruction in the noisy sample's units"),
            ("- std.log() - 0.5 * math", "+ std.log() - 0.5 * math", "the sign of a density's width"),
        ],
    ),
    (
        "losses.py",
        [f"{LOSSES}::test_implicit_score_matching_is_half_the_square_plus_the_divergence"],
        [
            ("s.square()) + _divergence.exact", "s.square()) - _divergence.exact", "the sign of the divergence"),
            (
                "0.5 * _per_sample(s.square()) + _divergence.exact",
                "_per_sample(s.square()) + _divergence.exact",
                "no ½",
            ),
        ],
    ),
    (
        "losses.py",
        [f"{LOSSES}::test_sliced_score_matching_averages_to_the_exact_one"],
        [
            ("s.square()) + _divergence.along", "s.square()) + 0.5 * _divergence.along", "half the sliced trace"),
            ("s.square()) + _divergence.along", "s.square()) - _divergence.along", "the sign of the slice"),
        ],
    ),
    (
        "_divergence.py",
        [
            f"{LOSSES}::test_implicit_score_matching_is_half_the_square_plus_the_divergence",
            f"{LOSSES}::test_sliced_score_matching_averages_to_the_exact_one",
            "test_likelihood.py::test_hutchinson_is_unbiased_with_the_stated_variance[gaussian]",
        ],
        [
            ("expand_as(x), value", "expand_as(x) + 1, value", "a probe off its axis"),
            ("(pulled * probe).flatten", "pulled.flatten", "a probe that is used once"),
            ("grad(value, x, probe,", "grad(value, x, torch.ones_like(probe),", "a sum of columns for a projection"),
        ],
    ),
    (
        "losses.py",
        [
            f"{LOSSES}::test_denoising_score_matching_is_the_loss_of_eps",
            f"{LOSSES}::test_denoising_score_matching_is_the_fisher_divergence_and_what_no_score_removes",
        ],
        [
            ("* s + eps)", "* s - eps)", "a score that points to the noise"),
            ("check.like(schedule.sigma(t), x0) * s", "check.like(schedule.sigma(t), x0) ** 2 * s", "σ² for σ"),
            ("0.5 * _per_sample((check", "_per_sample((check", "a lost half in denoising"),
            ("q_sample(x0, t, schedule, eps)", "q_sample(x0, t, schedule)", "noise drawn twice"),
        ],
    ),
    (
        "losses.py",
        [f"{LOSSES}::test_random_steps_are_unbiased_for_each_sample"],
        [
            ("count / steps", "count", "random steps that count for all"),
            ("(j * batch + one_each)", "(batch + one_each)", "the same random step at every visit"),
        ],
    ),
    (
        "losses.py",
        [f"{LOSSES}::test_a_few_random_steps_estimate_all_of_them"],
        [("(factor * weight[step])", "(weight[step])", "random steps that are not weighted up")],
    ),
    (
        "losses.py",
        [f"{LOSSES}::test_masses_of_the_bins"],
        [
            ("(2 * index + side)", "(index + side)", "a lost 2 in the edges of a bin"),
            ("(2 * index + side)", "(2 * index - side)", "a bin's edges exchanged"),
            ("-torch.expm1(below - upto)", "-torch.expm1(upto - below)", "a mass below nothing"),
            ("log_ndtr(-low)", "log_ndtr(low)", "the last bin open on the wrong side"),
        ],
    ),
    (
        "losses.py",
        [f"{LOSSES}::test_bits_per_dim"],
        [
            ("- math.log2(bin_width)", "+ math.log2(bin_width)", "the sign of a bin's width"),
            ("(dims * math.log(2))", "(dims / math.log(2))", "bits to nats, not nats to bits"),
        ],
    ),
    (
        "losses.py",
        [f"{LOSSES}::test_normal_kl"],
        [
            ("expm1(ratio) - ratio", "expm1(ratio) + ratio", "the sign of the log-ratio in a divergence"),
            (
                "(mean1 - mean2) ** 2 / variance2",
                "(mean1 - mean2) ** 2 / variance1",
                "the wrong variance under the means",
            ),
        ],
    ),
    (
        "losses.py",
        [f"{LOSSES}::test_weights_as_the_papers_write_them"],
        [
            (
                "schedule.sigma_rate(t) - sigma *",
                "schedule.sigma_rate(t) + sigma *",
                "a rate of alpha sigma for the SNR's",
            ),
            ("alpha_rate(t)) / sigma**3", "alpha_rate(t)) / sigma**2", "a lost sigma in the rate of the SNR"),
            ("torch.minimum(of_eps", "torch.maximum(of_eps", "the larger of SNR and gamma"),
            ("gamma * of_x0**2)", "gamma * of_eps**2)", "gamma on the wrong error"),
            ("(k + snr)", "(k * snr)", "a product for the sum in P2"),
        ],
    ),
    (
        "losses.py",
        [
            f"{LOSSES}::test_random_times_estimate_the_continuous_bound[linear]",
            f"{LOSSES}::test_random_times_are_unbiased_for_each_sample",
            f"{LOSSES}::test_the_ends_of_the_continuous_bound_are_those_of_a_chain",
        ],
        [
            ("* cells * width / steps", "* width / steps", "times not divided by their density"),
            ("(schedule, t) * cells", "(schedule, edges[cell]) * cells", "the weight of a cell's edge"),
            (
                "(j * batch + one_each) / (steps * batch)) % 1",
                "(j * batch + one_each) / (steps * batch)).clamp(0, 1)",
                "the last share of the walk for the last sample",
            ),
            ("noisy, clean, bins", "clean, clean, bins", "the prior at the cleanest end"),
            ("torch.linspace(most / 2", "torch.linspace(most / 1", "the log-SNR for its half"),
        ],
    ),
    (
        "losses.py",
        [f"{LOSSES}::test_interpolated_variance"],
        [
            ("v * forward + (1 - v) * posterior", "v * posterior + (1 - v) * forward", "v counted from the other end"),
            ("(1 - v) * posterior", "(1 + v) * posterior", "the sign in 1 − v"),
        ],
    ),
    (
        "losses.py",
        [f"{LOSSES}::test_with_the_right_learned_variance_the_bound_is_the_entropy[cosine-5-None]"],
        [
            ("shrink = v * shrink", "shrink = (1 - v) * shrink", "v counted from the other end in a step's divergence"),
            ("(x0 - guess) ** 2 + terms.constant)", "(x0 - guess) ** 2)", "a learned variance that costs nothing"),
        ],
    ),
    (
        "losses.py",
        [f"{LOSSES}::test_the_hybrid_loss_s_bound_is_the_elbo_without_its_prior"],
        [
            ("scale * steps * vlb", "scale * vlb", "one term for the whole bound"),
            ("time - step <= schedule", "time - step < schedule", "a divergence where the data are"),
            ("(-schedule.half_log_snr(time))", "(schedule.half_log_snr(time))", "a reconstruction upside down"),
            ("schedule.t_min) / step", "schedule.t_min) * step", "as many terms as a step is long"),
            ("_gains(schedule, s, time)", "_gains(schedule, time, s)", "the hybrid loss's step upwards"),
        ],
    ),
    (
        "losses.py",
        [f"{LOSSES}::test_the_hybrid_loss_moves_the_mean_by_its_simple_part_alone"],
        [("output.detach(), x", "output, x", "a mean that learns from the bound")],
    ),
    (
        "denoisers.py",
        ["test_denoisers.py::test_preconditioning_is_that_of_an_independent_library[linear-0.5]"],
        [
            ("(sigma, alpha * spread)  #", "(sigma, spread)  #", "x taken for x / alpha in its own deviation"),
            ("return alpha * spread**2 / total**2", "return spread**2 / total**2", "c_skip for x / alpha"),
            ("return alpha * spread**2 / total**2", "return alpha * spread / total**2", "a lost square in c_skip"),
            ("sigma * spread / total, 1 / total", "sigma / total, 1 / total", "c_out without sigma_data"),
            ("half_log_snr(t) / 4", "half_log_snr(t) / 2", "c_noise from the wrong root of the noise level"),
            (", -self.schedule.half_log_snr", ", self.schedule.half_log_snr", "c_noise falling with the noise"),
            ("(c_in, x) * x, c_noise", "(c_in, x) + x, c_noise", "an input shifted for scaled"),
            ("c_skip * x + c_out * output", "c_skip * x - c_out * output", "the output's sign"),
        ],
    ),
    (
        "denoisers.py",
        ["test_denoisers.py::test_the_network_s_input_and_target_have_unit_variance[cosine-0.5]"],
        [
            ("c_in / spread, -alpha", "c_in, -alpha", "a target whose data part is not over sigma_data"),
            ("-alpha * spread * c_in", "alpha * spread * c_in", "the sign of the noise in a target"),
            ("-alpha * spread * c_in", "-spread * c_in", "no alpha on the noise in a target"),
        ],
    ),
    (
        "denoisers.py",
        ["test_guidance.py::test_guidance_follows_the_gradient_of_the_tilted_log_density[3.0]"],
        [
            ("(unconditional, conditional, self", "(conditional, unconditional, self", "guidance away from the class"),
            ("found[:batch], found[batch:]", "found[batch:], found[batch:]", "the conditional half thrown away"),
            ("return self.guidance_scale\n", "return self.guidance_scale + 1\n", "the other convention of the scale"),
        ],
    ),
    (
        "denoisers.py",
        ["test_guidance.py::test_interval", "test_guidance.py::test_one_call_of_twice_the_batch"],
        [
            ("(low <= t) & (t <= high)", "(low <= t) | (t <= high)", "an interval that is the whole line"),
            ("(low <= t) & (t <= high)", "(low < t) & (t < high)", "an interval without its ends"),
            ("self.guidance_scale), 1.0)", "self.guidance_scale), 0.0)", "unconditional outside the interval"),
        ],
    ),
    (
        "denoisers.py",
        ["test_guidance.py::test_rescale_is_that_of_an_independent_library"],
        [
            ("wanted / found, 1.0)", "found / wanted, 1.0)", "a rescaling that spreads further"),
            ("self.rescale * (ratio - 1)", "(1 - self.rescale) * (ratio - 1)", "the share of rescaling turned round"),
            ("flatten(1).std(1), x)", "flatten(1).var(1), x)", "variances for deviations in rescaling"),
        ],
    ),
    (
        "denoisers.py",
        ["test_guidance.py::test_the_exact_classifier_makes_the_conditional_denoiser[linear]"],
        [
            ("* sigma**2 / alpha)", "* sigma**2)", "a classifier's gradient without 1/alpha"),
            ("* sigma**2 / alpha)", "* sigma / alpha)", "a lost square on a classifier's gradient"),
            ("F.log_softmax(logits.to(x.dtype), 1)", "F.log_softmax(logits.to(x.dtype), 0)", "over the batch"),
            ("(x, t) + check.like(factor, x)", "(x, t) - check.like(factor, x)", "away from the class"),
        ],
    ),
    (
        "denoisers.py",
        ["test_guidance.py::test_where_nothing_of_the_data_is_left_the_classifier_is_silent"],
        [("(alpha == 0, 0.0, self", "(alpha < 0, 0.0, self", "a division by alpha = 0")],
    ),
    (
        "denoisers.py",
        ["test_guidance.py::test_autoguidance_on_gaussians"],
        [("(self.weak(x, t, *cond), self.strong", "(self.strong(x, t, *cond), self.weak", "guided by the stronger")],
    ),
    (
        "denoisers.py",
        [
            "test_guidance.py::test_dynamic_thresholding_is_that_of_an_independent_library",
            "test_guidance.py::test_the_floor_is_the_bound_of_the_data",
        ],
        [
            ("self.floor / reach.clamp", "1.0 / reach.clamp", "thresholding to 1 whatever the data's bound"),
            ("reach.clamp(min=self.floor)", "reach.clamp(max=self.floor)", "thresholding that stretches"),
            ("flatten(1).abs().float()", "flatten(1).float()", "a quantile of signed values"),
        ],
    ),
    (
        "denoisers.py",
        ["test_denoisers.py::test_reschedule_is_the_exact_denoiser_of_the_other_schedule[ve]"],
        [
            ("like(there / here, x) * x", "like(here / there, x) * x", "x rescaled the wrong way"),
            ("x) * x, s.to(x), *cond)", "x) * x, t.to(x), *cond)", "the source asked at the target's time"),
        ],
    ),
    (
        "denoisers.py",
        ["test_denoisers.py::test_a_learned_variance_is_the_second_half_of_the_channels"],
        [
            ("v.sigmoid()", "v", "v outside [0, 1]"),
            ("raw[:, : x.shape[1]]", "raw[:, x.shape[1] :]", "the variance's channels taken for the mean's"),
        ],
    ),
    (
        "samplers.py",
        [f"{SAMPLERS}::test_the_right_learned_variance_is_exact_for_any_number_of_steps"],
        [
            ("u**2, wide**2).sqrt()", "u**2, wide**2)", "noise scaled by a learned variance"),
            ("(v, u**2, wide**2)", "(v, wide**2, wide**2)", "the forward variance at both ends of eq. 15"),
            ("(v, u**2, wide**2)", "(v, u, wide)", "deviations for variances in eq. 15"),
        ],
    ),
    (
        "times.py",
        [f"{TIMES}::test_every_rule_estimates_the_mean_over_the_schedule_s_times"],
        [
            ("(1 / (self.bins * p[chosen]))", "(1 * (self.bins * p[chosen]))", "weights of p for 1/p"),
            ("(upto - p)[chosen]", "upto[chosen]", "times at the edges of the cells alone"),
        ],
    ),
    (
        "times.py",
        [f"{TIMES}::test_the_root_of_the_mean_square_of_the_last_losses"],
        [
            (".mean(1).sqrt()", ".mean(1)", "times in proportion to the mean square"),
            (".square().mean(1).sqrt()", ".abs().mean(1)", "times in proportion to the mean"),
            ("left <= self.history", "rank < self.history", "the first losses of a batch kept, not the last"),
            ("t.long() - 1", "t.long()", "losses put down to the next node"),
        ],
    ),
    (
        "times.py",
        [f"{TIMES}::test_uniform_until_every_bin_has_its_history"],
        [("self.history).all()", "self.history).any()", "a distribution from one bin's history")],
    ),
    (
        "times.py",
        [f"{TIMES}::test_weights_have_mean_one_and_follow_the_definition"],
        [("(1 - self.uniform_share) * share", "(1 + self.uniform_share) * share", "the sign of the uniform share")],
    ),
    (
        "gpu.py",
        [f"{TRAINING}::test_times_that_learn_are_told_the_losses_before_they_are_weighted"],
        [("(weight[mine] * losses)", "(losses)", "weights that are not used")],
    ),
    (
        "training.py",
        [f"{TRAINING}::test_metrics_are_means_over_their_interval"],
        [("(self.sums / self.count)", "(self.sums)", "a sum for the mean of an interval")],
    ),
    (
        "gpu.py",
        [f"{TRAINING}::test_two_processes_train_what_one_does"],
        [("slice(processes.rank(), None", "slice(0, None", "the same share in every process")],
    ),
    (
        "schedules.py",
        ["test_gpu.py::test_nothing_asks_the_device_for_a_number"],
        [("= time * self._first", "= time.item() * self._first", "a table that asks the host for the time")],
    ),
    (
        "gpu.py",
        ["test_gpu.py::test_a_compiled_step_of_training_is_the_step_by_hand"],
        [
            ("group.update(lr=lr,", "group.update(lr=1e-3,", "a rate of learning that stays"),
            ("ema.move(denoiser, pace)", "ema.move(denoiser, 0.1)", "an average that never hurries"),
        ],
    ),
    (
        "gpu.py",
        ["test_gpu.py::test_a_generator_s_noise_is_the_plain_loop_s_and_goes_on"],
        [
            (
                "torch.randn(x.shape, generator=generator,",
                "torch.randn(x.shape, generator=None,",
                "noise of another source",
            )
        ],
    ),
    (
        "gpu.py",
        ["test_gpu.py::test_half_precision_is_the_network_s_alone_and_stays_within_its_bound"],
        [("no_grad(), _working_in(where, autocast)", "no_grad(), _working_in(where, None)", "no half precision")],
    ),
    (
        "processes.py",
        ["test_processes.py::test_jobs_are_spread_and_come_back_in_order"],
        [
            (
                "for i in range(len(jobs))]",
                "for i in reversed(range(len(jobs)))]",
                "jobs that come back in another order",
            )
        ],
    ),
    (
        "processes.py",
        ["test_processes.py::test_a_checkpoint_in_parts_of_two_processes_goes_on_in_any_number"],
        [("(other, state[name])", "(other, state[first])", "an average that resumes as the weights")],
    ),
    (
        "processes.py",
        ["test_processes.py::test_weights_shared_out_train_as_one_process_does"],
        [("reshard_after_forward=True", "reshard_after_forward=False", "an average that stays whole once it is asked")],
    ),
    (
        "processes.py",
        [f"{TRAINING}::test_two_processes_train_what_one_does"],
        [
            ("value / world()", "value", "a loss summed over the processes"),
            ("torch.stack(parts, 1)", "torch.stack(parts, 0)", "losses parted from their times"),
        ],
    ),
    (
        "_image_mixture.py",
        [f"{IMAGES}::test_densities_are_those_of_full_covariances"],
        [
            ("off = alpha**2 * noise", "off = alpha * noise", "alpha for alpha² off the axes"),
            ("noise + sigma**2  #", "noise + sigma  #", "sigma for sigma² off the axes"),
            ("on = (alpha**2)[..., None]", "on = alpha[..., None]", "alpha for alpha² on the axes"),
            ("singular**2, noise**2)", "singular, noise**2)", "an axis's deviation for its variance"),
            ("singular**2, noise**2)", "singular**2, noise)", "the noise's deviation for its variance"),
            (
                "- alpha[..., None] * offsets",
                "- alpha[..., None] ** 2 * offsets",
                "axes around means that shrank twice",
            ),
            ("- 2 * alpha * (far", "- alpha * (far", "a lost 2 on the cross term of a distance"),
            ("+ alpha**2 * (means**2)", "+ alpha * (means**2)", "a lost square on the means of a distance"),
            ("squares = along**2", "squares = along", "a lost square along the axes"),
            (
                "(distance - squares.sum(2)) / off",
                "(distance + squares.sum(2)) / off",
                "what lies on the axes added, not taken away",
            ),
            (
                "(means.shape[1] - on.shape[2])",
                "(means.shape[1] + on.shape[2])",
                "the determinant over d + r, not d − r",
            ),
            ("+ on.log().sum(2)", "- on.log().sum(2)", "the sign of the axes' determinant"),
            ("log_weights - 0.5 * (quadratic", "log_weights - (quadratic", "no half in an image's exponent"),
            (
                "x.flatten(1).double() - alpha * centre",
                "x.flatten(1).double() - centre",
                "a centre that did not shrink",
            ),
        ],
    ),
    (
        "_image_mixture.py",
        [f"{IMAGES}::test_score_is_the_gradient_and_denoise_is_tweedie"],
        [
            ("(alpha * pull) @ means", "pull @ means", "a score without alpha"),
            ("- pull.sum(1, keepdim=True) * far", "+ pull.sum(1, keepdim=True) * far", "the sign of an image's score"),
            ("mixing * alpha * noise / off", "mixing * noise / off", "a gain without alpha"),
            ("(alpha * sigma**2)[..., None]", "(alpha * sigma)[..., None]", "a lost square in the gain along the axes"),
            ("(mixing - alpha * gain)", "(mixing + alpha * gain)", "the sign of the mean already in x"),
            ("flat = centre + (mixing", "flat = (mixing", "the centre lost from the denoiser"),
        ],
    ),
    (
        "_image_mixture.py",
        [f"{IMAGES}::test_guidance"],
        [
            ("plain + scale * (conditional", "conditional + scale * (conditional", "the paper's w for the scale"),
            ("(conditional - plain)", "(plain - conditional)", "guidance away from the class"),
        ],
    ),
    (
        "_image_mixture.py",
        [f"{IMAGES}::test_samples_have_the_stated_moments"],
        [
            ("drawn = alpha * means", "drawn = means", "noisy images around means that did not shrink"),
            ("sigma**2).sqrt()[:, None]", "sigma**2)[:, None]", "images with a variance for a deviation"),
            ("* spread[k].sqrt())", "* spread[k])", "axes drawn with a variance for a deviation"),
            ("+= alpha * (wide", "+= (wide", "axes that did not shrink"),
        ],
    ),
    (
        "likelihood.py",
        [
            "test_likelihood.py::test_gaussian_prior_on_gaussian_data[ve]",
            "test_likelihood.py::test_gaussian_prior_on_gaussian_data[cosine]",
        ],
        [
            ("gained.mean(1) + dims", "-gained.mean(1) + dims", "the sign of the divergence"),
            ("+ dims * (r_end", "- dims * (r_end", "the sign of the coordinates' scale in the density"),
            ("dims * (r_end / r_start)", "dims * (r_end / r_end)", "the coordinates' scale forgotten in the density"),
            ("dims * (r_end / r_start)", "(r_end / r_start)", "one dimension for all in the coordinates' scale"),
            ("* squares - r * products", "* squares - products", "a chain rule without the coordinates' scale"),
            ("* squares - r * products", "* squares + r * products", "the sign of the denoiser's divergence"),
            ("(alpha / r * u - x0)", "(u - x0)", "v_hat without its cosine"),
            ("code, gained = r_end * path", "code, gained = path", "a code in the solver's coordinates"),
            ("- sigma.log() - 0.5 * math", "+ sigma.log() - 0.5 * math", "the sign of the prior's width"),
        ],
    ),
    (
        "likelihood.py",
        [
            "test_likelihood.py::test_each_probe_s_estimate_on_gaussian_data[ve-gaussian]",
            "test_likelihood.py::test_each_probe_s_estimate_on_gaussian_data[ve-rademacher]",
        ],
        [
            ("vectors.square().flatten(2)", "vectors.flatten(2)", "a probe's square forgotten"),
            ("squares = dims if vectors is None", "squares = dims if vectors is not x", "a probe's square taken for d"),
            ("/ math.sqrt(probes)", "/ probes", "a variance's rate for an error's"),
            ("torch.where(normal < 0, -1.0, 1.0)", "torch.where(normal < 0, 0.0, 1.0)", "signs without a minus"),
        ],
    ),
    (
        "likelihood.py",
        ["test_likelihood.py::test_dequantised_bits_are_those_of_the_levels"],
        [
            ("(noise(x) - 0.5)", "noise(x)", "noise to one side of the level"),
            ("* (2 / (bins - 1))", "* (1 / (bins - 1))", "half a bin of noise"),
        ],
    ),
    (
        "fokker_planck.py",
        [
            "test_fokker_planck.py::test_ornstein_uhlenbeck_with_the_order_in_the_cell_s_width",
            "test_fokker_planck.py::test_a_constant_drift_settles_to_the_exact_exponential",
            "test_fokker_planck.py::test_heat_spreads_without_drift",
        ],
        [
            ("0.5 * g**2 / width**2", "g**2 / width**2", "no half in front of g²"),
            ("0.5 * g**2 / width**2", "0.5 * g / width**2", "g for g²"),
            ("spread * _bernoulli(-ratio)", "spread * _bernoulli(ratio)", "no drift at all"),
            ("b.to(torch.float64) / width", "b.to(torch.float64)", "a drift that ignores the cell's width"),
            ("torch.where(z == 0, 1.0, z / torch", "torch.where(z == 0, 0.0, z / torch", "no diffusion without drift"),
            (
                "(centres[1:] + centres[:-1]) / 2",
                "(centres[1:] + centres[1:]) / 2",
                "drift read at centres, not at walls",
            ),
        ],
    ),
    (
        "schedules.py",
        [f"{SCHEDULES}::test_the_noise_of_sub_vp_is_the_square_of_vp_s"],
        [("return -torch.expm1(2 * self", "return -torch.expm1(self", "1 − alpha for 1 − alpha² of sub-VP")],
    ),
    (
        "couplings.py",
        ["test_couplings.py::test_on_the_line_transport_sorts"],
        [
            ("-(x0 @ noise.T)", "(x0 @ noise.T)", "the dearest pairs in place of the cheapest"),
            (
                "numItermax=10_000_000).argmax(1)",
                "numItermax=10_000_000).argmax(0)",
                "the assignment read the other way round",
            ),
        ],
    ),
    (
        "couplings.py",
        ["test_couplings.py::test_noise_changes_places_within_a_condition_only"],
        [
            (
                "members[_assignment(x0[members], noise[members])]",
                "_assignment(x0[members], noise[members])",
                "a class's places taken for the batch's",
            ),
            ("group == which", "group <= which", "noise that goes from class to class"),
        ],
    ),
    (
        "couplings.py",
        [
            "test_couplings.py::test_a_straight_line_at_even_speed_is_straight_on_any_grid",
            "test_couplings.py::test_straightness_is_the_integral",
        ],
        [
            ("check.like(ts[-1] - ts[0], states)", "check.like(ts[0] - ts[-1], states)", "a path's time turned round"),
            ("(steps / steps.sum())", "(steps / steps / len(ts))", "uneven steps counted alike"),
        ],
    ),
    (
        "couplings.py",
        ["test_couplings.py::test_reflow_hands_each_noise_its_condition_and_goes_on_in_batches"],
        [("(cond[i : i + batch],)", "(cond.flip(0)[i : i + batch],)", "classes from the other end")],
    ),
    (
        "couplings.py",
        ["test_couplings.py::test_reflow_starts_from_noise_of_the_grid_s_first_sigma"],
        [("grid[0].sigma * noise", "grid[-1].alpha * noise", "noise that is not scaled to the grid's first sigma")],
    ),
    (
        "losses.py",
        [f"{LOSSES}::test_the_flow_matching_loss_is_that_of_the_velocity_converted"],
        [
            ("like(factor, error)", "like(factor / factor, error)", "each kind's own error taken for the velocity's"),
            ("sigma * rise) / (alpha * q", "sigma * rise) / (sigma * q", "a wrong determinant of the kind"),
        ],
    ),
    (
        "schedules.py",
        [f"{SCHEDULES}::test_a_shift_is_what_averaging_pixels_undoes"],
        [
            ("(shift * ts + (1 - ts))", "(shift * ts + shift * (1 - ts))", "no shift at all, but a factor"),
            ("shift * ts / (shift * ts", "ts / (ts / shift", "a shift past the noise"),
        ],
    ),
    (
        "times.py",
        [f"{TIMES}::test_logit_normal_times_have_the_density_of_torch_distributions"],
        [
            ("sigmoid(loc + scale", "sigmoid(-loc + scale", "times moved to the wrong end"),
            ("scale * torch.special.ndtri", "scale**2 * torch.special.ndtri", "a variance for a deviation"),
        ],
    ),
    (
        "gpu.py",
        [f"{TRAINING}::test_noise_given_stays_with_its_sample"],
        [("partner = noise[chosen]", "partner = noise[:batch]", "pairs of noise and sample parted")],
    ),
    (
        "gpu.py",
        [f"{TRAINING}::test_a_coupling_gets_each_batch_with_every_condition_and_its_noise_is_used"],
        [("coupling(x0[chosen], partner,", "coupling(x0[:batch], partner,", "another batch's coupling")],
    ),
    (
        "gpu.py",
        [f"{TRAINING}::test_dropped_rows_of_tokens_become_the_network_s_null"],
        [('getattr(net, "null", getattr', 'getattr(net, "nil", getattr', "a class number where text has no word")],
    ),
    (
        "scenes.py",
        ["test_scenes.py::test_held_out_is_what_the_words_say"],
        [("seen[j, r + 1, i]", "seen[j, r, i]", "a relation that does not turn with its shapes")],
    ),
    (
        "scenes.py",
        ["test_scenes.py::test_canonical_is_one_wording_of_each_picture"],
        [("what[:, 5:], what[:, 2:5]], 1)", "what[:, 2:5], what[:, 2:5]], 1)", "one shape told twice")],
    ),
    (
        "scenes.py",
        ["test_scenes.py::test_distances_by_hand"],
        [
            ("(torch.arange(size).to(x) + 0.5)", "(torch.arange(size).to(x))", "pixels' corners for their centres"),
            ("torch.full_like(half, 0.5)", "torch.full_like(half, 0.6)", "a star with blunt points"),
        ],
    ),
    (
        "scenes.py",
        ["test_scenes.py::test_shapes_are_inside_and_apart_and_their_relation_is_plain"],
        [
            (
                "torch.where(turned, radius_2, radius_1), torch",
                "torch.where(turned, radius_1, radius_2), torch",
                "radii swapped",
            )
        ],
    ),
    (
        "scenes.py",
        ["test_scenes.py::test_tokens_are_the_words_in_their_order_and_then_nothing"],
        [('_WORD["left"] + what[:, 1] - 1', '_WORD["left"] + what[:, 1]', "relations counted from 0")],
    ),
    (
        "scenes.py",
        ["test_scenes.py::test_agreement_is_what_a_slow_count_says"],
        [("same[:, 2] & same[:, 5]", "same[:, 2] & same[:, 2]", "the second shape not looked at")],
    ),
    (
        "autoencoding.py",
        ["test_autoencoding.py::test_perceptual_distance_by_hand"],
        [(".square().sum(1).mean() for", ".square().mean() for", "a mean over channels for their sum")],
    ),
    (
        "autoencoding.py",
        ["test_autoencoding.py::test_hinge_loss_in_numbers"],
        [("F.relu(1 + fake)", "F.relu(1 - fake)", "reconstructions taken for pictures")],
    ),
    (
        "autoencoding.py",
        ["test_autoencoding.py::test_the_critic_enters_when_said_and_learns_from_its_own_loss_alone"],
        [("step > adversarial_from * steps", "step >= adversarial_from * steps", "a critic that enters a step early")],
    ),
    (
        "autoencoding.py",
        ["test_autoencoding.py::test_entries_out_of_use_restart_in_the_first_three_quarters"],
        [("(step - 1) % restart_every == 0", "step % restart_every == 1", "no restarts at every step")],
    ),
    (
        "autoencoding.py",
        ["test_autoencoding.py::test_latent_scale_brings_latents_to_deviation_one"],
        [("return 1 / latents.std()", "return 1 / latents.std() ** 2", "a variance for a deviation of latents")],
    ),
    (
        "latent.py",
        ["test_latent.py::test_the_refiner_takes_over_at_the_first_node_below"],
        [("(refiner, ts[switch:])", "(refiner, ts[switch - 1 :])", "a refiner that begins a node too early")],
    ),
    (
        "latent.py",
        ["test_latent.py::test_a_walk_from_pictures_starts_at_their_noisy_versions"],
        [("schedule, _like(generator)(x0))", "schedule, x0)", "pictures that are their own noise")],
    ),
]

MUTANTS = [Mutant(file, tuple(tests), *edit) for file, tests, edits in GROUPS for edit in edits]


# ---- the engine


def mutate(root: Path, mutant: Mutant) -> str:
    """The mutated text of the file; raises ValueError, naming the file, unless the snippet is there exactly once."""
    text = (root / "companion" / mutant.file).read_text(encoding="utf-8")
    if (count := text.count(mutant.old)) != 1:
        raise ValueError(f"companion/{mutant.file} must hold {mutant.old!r} exactly once; it is there {count} times")
    return text.replace(mutant.old, mutant.new)


def copy(source: Path, target: Path) -> Path:
    """Copy what the tests need, and return the copy."""
    for name in COPIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=LEFT_OUT)
        else:
            shutil.copy2(source / name, target / name)
    return target


def start_server():
    """The process that test processes are forked from, so that PyTorch is imported once and not per mutant."""
    for name in [name for name in os.environ if name.startswith(("COMPANION_", "PYTEST_"))]:
        del os.environ[name]
    os.environ.update(ENVIRONMENT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def in_a_process(root: str, tests: tuple[str, ...], log: str):
    """Run tests on the copy of the package in ``root``, and exit with pytest's code; the output goes to ``log``."""
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(root)
    os.environ["PYTHONPATH"] = root
    sys.path[:] = [root, *(path for path in sys.path if path and Path(path).resolve() not in (ROOT, ROOT / "tests"))]
    import pytest

    import companion

    if not Path(companion.__file__).samefile(Path(root, "companion", "__init__.py")):
        raise RuntimeError(f"{companion.__file__} is imported, not the copy in {root}")
    sys.exit(int(pytest.main([*OPTIONS, *(f"tests/{test}" for test in tests)])))


def run_tests(context, root: Path, tests) -> tuple[int, str, float]:
    """Run tests against the package in ``root`` up to the first failure: pytest's exit code, output, seconds."""
    began, log = time.perf_counter(), root / "output.txt"
    code = exit_code(context.Process(target=in_a_process, args=(str(root), tuple(tests), str(log))), LIMIT)
    output = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return code, output, time.perf_counter() - began


def exit_code(process, limit: float) -> int:
    """Start a process and wait for it; its exit code, below 0 where it was killed, as it is after ``limit`` seconds."""
    with ONE_AT_A_TIME:
        process.start()
    ended = multiprocessing.connection.wait([process.sentinel], limit)
    with ONE_AT_A_TIME:
        if not ended:
            process.kill()
        process.join()
        return process.exitcode


def judge(context, snapshot: Path, mutant: Mutant) -> tuple[str, str, float]:
    """(verdict, the test that noticed or pytest's last words, seconds) for one mutant, in a copy of its own.

    Only a failed test kills. Anything else, such as an error while tests are collected, is "broken" and no verdict.
    """
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        root = copy(snapshot, Path(folder))
        (root / "companion" / mutant.file).write_text(mutate(snapshot, mutant), encoding="utf-8")
        code, output, seconds = run_tests(context, root, mutant.tests)
    if code == 0:
        return "SURVIVED", " ".join(mutant.tests), seconds
    noticed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", output, re.M)
    if code == 1 and noticed:
        return "killed", noticed[1], seconds
    return "BROKEN", f"exit code {code} after at most {LIMIT} s; {output[-1500:]}", seconds


def report(number: int, mutant: Mutant, verdict: str, words: str, seconds: float):
    """Print one line: verdict, time, place, what is wrong, and which test noticed."""
    print(f"{number:3d} {verdict:8s} {seconds:5.1f} s  {mutant.file}: {mutant.what}  [{words}]", flush=True)
    if verdict != "killed":
        print(f"      {mutant.old!r} -> {mutant.new!r}", flush=True)


def run(mutants: list[Mutant], jobs: int) -> int:
    """Judge all mutants on one snapshot of the package; the number of those that were not killed."""
    began, context = time.perf_counter(), start_server()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        snapshot = copy(ROOT, Path(folder))
        for mutant in mutants:
            mutate(snapshot, mutant)
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        code, output, seconds = run_tests(context, snapshot, tests)
        if code != 0:
            print(f"the package as it is fails:\n{output}", file=sys.stderr)
            return len(mutants)
        print(f"    the package as it is passes in {seconds:.1f} s", flush=True)
        bad = 0
        with ThreadPoolExecutor(jobs) as pool:
            tasks = {pool.submit(judge, context, snapshot, mutant): mutant for mutant in mutants}
            for number, task in enumerate(as_completed(tasks), 1):
                verdict, words, seconds = task.result()
                report(number, tasks[task], verdict, words, seconds)
                bad += verdict != "killed"
    print(f"{len(mutants) - bad} of {len(mutants)} mutants killed in {time.perf_counter() - began:.0f} s")
    return bad


def main(arguments=None) -> int:
    """The command line; exit code 1 where a mutant is not killed, or where the package as it is fails."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--jobs", type=int, default=2, help="mutants at a time (2)")
    options.add_argument("--only", default="", metavar="PATTERN", help="regular expression on file and description")
    options.add_argument("--list", action="store_true", help="print the list and stop")
    given = options.parse_args(arguments)
    chosen = [mutant for mutant in MUTANTS if re.search(given.only, f"{mutant.file}: {mutant.what}")]
    if not chosen:
        options.error(f"no mutant matches {given.only!r}")
    if given.list:
        for mutant in chosen:
            print(f"{mutant.file}: {mutant.what}\n    {mutant.old!r} -> {mutant.new!r}")
        return 0
    return int(run(chosen, max(1, given.jobs)) > 0)


if __name__ == "__main__":
    sys.exit(main())
