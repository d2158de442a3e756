"""Networks: shapes, what they depend on, embeddings, counts, errors."""

import functools
import math
import shutil

import pytest
import torch
from conftest import refuses
from torch.nn import functional as F

from companion.nets import (
    MLP,
    Classifier,
    CrossAttention,
    DiT,
    TextEncoder,
    UNet,
    count,
    place_embedding,
    timestep_embedding,
)
from companion.nets.dit import DiTBlock, JointBlock
from companion.nets.unet import Attention, upsampled


def warm(net):
    """Replace the zeros of the start, so that every path matters."""
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return net


@pytest.mark.parametrize("size,multipliers,channels", [(8, (1, 2), 1), (16, (1, 2, 2), 3), (5, (1,), 2)])
def test_unet_keeps_the_shape_and_starts_at_zero(size, multipliers, channels):
    net = UNet(channels, 16, multipliers)
    x, t = torch.randn(3, channels, size, size), torch.rand(3)
    assert net(x, t).shape == x.shape and (net(x, t) == 0).all()


def test_unet_depends_on_each_input_and_on_nothing_else_in_the_batch():
    net = warm(UNet(1, 16, (1, 2), classes=10)).eval()
    x, t, c = torch.randn(4, 1, 8, 8), torch.rand(4), torch.tensor([0, 3, 9, 10])
    y = net(x, t, c)
    assert (net(x, t + 0.01, c) - y).abs().max() > 1e-4
    assert (net(x, t, (c + 1) % 10) - y).abs().max() > 1e-4
    assert torch.allclose(net(x, t, None), net(x, t, torch.full((4,), 10)), atol=1e-6)
    for i in range(4):
        torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1], c[i : i + 1])[0], y[i], atol=1e-4, rtol=1e-4)


def test_patches_keep_shape_and_place():
    net = warm(UNet(1, 16, (1,), patch=4)).double()
    x, t = torch.randn(2, 1, 16, 16, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    assert net(x, t).shape == x.shape
    # a network whose convolutions look at one patch only: a pixel moves nothing outside its own patch
    net = UNet(1, 16, (1,), patch=4).double()
    with torch.no_grad():
        torch.nn.init.normal_(net.stem.weight[..., 1, 1])
        net.stem.weight[..., [0, 2], :] = 0
        net.stem.weight[..., :, [0, 2]] = 0
        torch.nn.init.normal_(net.out.weight)
        net.out.weight[..., [0, 2], :] = 0
        net.out.weight[..., :, [0, 2]] = 0
    net.norm = torch.nn.Identity()
    changed = x.clone()
    changed[:, :, 5, 9] += 1
    moved = (net(changed, t) - net(x, t)).abs() > 1e-12
    place = torch.zeros_like(moved)
    place[:, :, 4:8, 8:12] = True
    assert moved.any() and not (moved & ~place).any()


def test_fourier_features_have_their_period():
    net = warm(UNet(1, 16, (1,), fourier=[5, 6])).double()
    net.stem.weight.data[:, 0] = 0  # x itself is not looked at: only sin and cos of 32πx and 64πx
    x, t = torch.rand(2, 1, 8, 8, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    torch.testing.assert_close(net(x + 2 / 2**5, t), net(x, t))
    assert (net(x + 2 / 2**6, t) - net(x, t)).abs().max() > 1e-3  # half a period of the slower ones


def test_outputs_are_what_was_asked_for():
    assert UNet(1, 16, (1, 2), outputs=2, patch=2)(torch.randn(3, 1, 8, 8), torch.rand(3)).shape == (3, 2, 8, 8)
    with refuses(ValueError, "patch must be an integer above 0"):
        UNet(patch=0)


def test_every_parameter_learns():
    net = warm(UNet(1, 16, (1, 2), classes=3))
    net(torch.randn(6, 1, 8, 8), torch.rand(6), torch.arange(6) % 4).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_embedding_against_its_definition():
    t = torch.tensor([0.0, 1.0, 250.0], dtype=torch.float64)
    e = timestep_embedding(t, 8)
    for row, time in zip(e, t.tolist(), strict=True):
        for i in range(4):
            angle = time / 10000 ** (i / 4)
            assert row[i].item() == pytest.approx(math.cos(angle)) and row[4 + i].item() == pytest.approx(
                math.sin(angle)
            )


def test_mlp_learns_a_line():
    net = MLP(2, 32, 2)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(200):
        x, t = torch.randn(64, 2), torch.rand(64)
        loss = (net(x, t) - 2 * x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5


def test_classifier_decides_from_its_features_image_by_image():
    net = Classifier(2, width=8, classes=7, features=5)
    net.project.weight.data *= 50  # so that a SiLU left out would show
    x = torch.randn(4, 2, 16, 24)
    logits, features = net(x), net.features(x)
    assert logits.shape == (4, 7) and features.shape == (4, 5)
    torch.testing.assert_close(logits, features @ net.decide.weight.T + net.decide.bias)
    assert features.min() > -0.2785 and (features < 0).any()  # after the SiLU, not before
    for i in range(4):
        torch.testing.assert_close(net(x[i : i + 1])[0], logits[i], atol=1e-5, rtol=1e-4)
    assert 100_000 < sum(p.numel() for p in Classifier().parameters()) < 300_000


def test_classifier_learns_with_every_parameter():
    net = Classifier(width=8, classes=2, features=8)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        kinds = torch.arange(32) % 2
        x = torch.randn(32, 1, 16, 16)
        x[::2, :, ::2] += 2  # stripes across
        x[1::2, :, :, ::2] += 2  # stripes down
        loss = torch.nn.functional.cross_entropy(net(x), kinds)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
        optimizer.step()
    assert loss < 0.1


def test_a_classifier_is_told_the_time():
    torch.manual_seed(0)
    plain, timed = Classifier(width=8), Classifier(width=8, timed=True)
    missing = timed.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert {key.split(".")[0] for key in missing} == {"time", "films"}
    x, t = torch.randn(4, 1, 16, 16), torch.rand(4)
    torch.testing.assert_close(timed(x, t), plain(x))  # at first the time does nothing
    for film in timed.films:
        torch.nn.init.normal_(film.weight, std=0.5)
    told = timed(x, t)
    assert (told - plain(x)).abs().max() > 1e-3 and (told - timed(x, 1 - t)).abs().max() > 1e-3
    for i in range(4):
        torch.testing.assert_close(timed(x[i : i + 1], t[i : i + 1])[0], told[i], atol=1e-5, rtol=1e-4)
    told.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in timed.parameters())
    with refuses(ValueError, "t must be given"):
        timed(x)
    with refuses(ValueError, "t must be None"):
        plain(x, t)


def test_bad_arguments():
    for wrong in ({"channels": 0}, {"width": 12}, {"classes": 0}, {"features": 0}):
        with refuses(ValueError, f"{next(iter(wrong))} must be"):
            Classifier(**wrong)
    for shape in ((1, 1, 12, 32), (1, 3, 32, 32)):
        with refuses(ValueError, "x must have shape"):
            Classifier(width=8)(torch.zeros(shape))
    with refuses(ValueError, "width must be"):
        UNet(width=12)
    net = UNet(1, 16, (1, 2))
    with refuses(ValueError, "x must have shape"):
        net(torch.zeros(1, 1, 7, 8), torch.zeros(1))
    with refuses(ValueError, "x must have shape"):
        net(torch.zeros(1, 3, 8, 8), torch.zeros(1))
    with refuses(ValueError, "no classes"):
        net(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    with refuses(ValueError, "dim must be"):
        timestep_embedding(torch.zeros(3), 7)


# ---- attention at chosen levels, and the transformer


def test_attention_follows_every_block_of_the_levels_asked_for():
    net = UNet(1, 16, (1, 2, 2), blocks=2, attention=(0, 2))
    looks = [name for name, module in net.named_modules() if isinstance(module, Attention)]
    channels = [net.get_submodule(name).out.out_channels for name in looks]
    assert len(looks) == 2 * 2 + 2 * 3 + 1 and channels == [16, 16, 32, 32, 32, 32, 32, 16, 16, 16, 32]
    assert set(UNet(1, 16, (1, 2, 2), blocks=2).state_dict()) == {
        key for key in net.state_dict() if ".attention." not in key
    }
    assert (net(torch.randn(2, 1, 8, 8), torch.rand(2)) == 0).all()
    warm(net)(torch.randn(2, 1, 8, 8), torch.rand(2)).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())
    with refuses(ValueError, "attention must list levels from 0 to 1"):
        UNet(1, 16, (1, 2), attention=(2,))
    with refuses(ValueError, "channels must fit into heads"):
        UNet(1, 104, (1,))


def test_attention_at_a_level_sees_across_it():
    """One level, the middle cut out: the convolutions reach nine pixels, attention all sixteen."""
    x, t, reach = torch.randn(1, 1, 1, 16, dtype=torch.float64), torch.rand(1, dtype=torch.float64), {}
    for levels in ((), (0,)):
        net = UNet(1, 8, (1,), attention=levels).double()
        net.middle = torch.nn.ModuleList()
        for module in warm(net).modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.forward = lambda x: x  # which also sees everything
        x.requires_grad_()
        (seen,) = torch.autograd.grad(net(x, t)[0, 0, 0, 0], x)
        reach[levels] = (seen[0, 0, 0] != 0).sum().item()
    assert reach == {(): 9, (0,): 16}


def test_places_against_their_definition():
    over = 10000 ** (-torch.arange(3) / 3)
    want = [
        torch.cat([(row * over).cos(), (row * over).sin(), (column * over).cos(), (column * over).sin()])
        for row in range(2)
        for column in range(5)
    ]
    torch.testing.assert_close(place_embedding(2, 5, 12), torch.stack(want))
    for height, dim, word in ((0, 8, "height"), (2, 6, "dim"), (2, 0, "dim")):
        with refuses(ValueError, f"{word} must be"):
            place_embedding(height, 2, dim)


def test_every_pixel_of_a_unet_is_told_its_place():
    x, t = torch.randn(3, 2, 4, 8), torch.rand(3)
    net, plain = warm(UNet(2, 16, (1, 2), places=True)), UNet(2, 16, (1, 2))
    plain.load_state_dict(net.state_dict())  # places are no weights: what was trained without them still loads
    assert not torch.allclose(net(x, t), plain(x, t), atol=1e-2)
    stem = plain.stem.forward
    plain.stem.forward = lambda x: stem(x) + place_embedding(4, 8, 16).reshape(4, 8, 16).permute(2, 0, 1)
    torch.testing.assert_close(net(x, t), plain(x, t))
    seen = []
    net.down[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(x, t)
    assert seen[0].dtype == torch.bfloat16 and seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("head,heads", [(32, 1), (16, 2), (8, 4)])
def test_a_unet_s_heads_are_those_of_an_independent_library(head, heads):
    net = warm(UNet(1, 32, (1,), head=head)).middle[1]
    other = torch.nn.MultiheadAttention(32, heads, batch_first=True)
    with torch.no_grad():
        for theirs, mine in (("in_proj_", net.qkv), ("out_proj.", net.out)):
            for kind in ("weight", "bias"):
                other.get_parameter(theirs + kind).copy_(getattr(mine, kind).squeeze())
    x = torch.randn(2, 32, 3, 5)
    seen = net.norm(x).flatten(2).mT
    want = x + other(seen, seen, seen)[0].mT.unflatten(-1, (3, 5))
    torch.testing.assert_close(net(x), want, atol=1e-5, rtol=1e-5)


def by_hand(net, x, t, cond):
    """The transformer from its weights, token by token and head by head (Peebles & Xie 2023, figure 3)."""
    width, p, side = net.stem.out_channels, net.patch, net.size // net.patch
    angle = 1000 * t[:, None] / 10000 ** (torch.arange(width // 2) / (width // 2))
    first, _, second = net.time
    emb = second(F.silu(first(torch.cat([angle.cos(), angle.sin()], 1)))) + net.label.weight[cond]
    emb = F.silu(emb)
    tokens = []
    for row in range(side):
        for column in range(side):
            square = x[:, :, row * p : row * p + p, column * p : column * p + p].flatten(1)
            over = 10000 ** (-torch.arange(width // 4) / (width // 4))
            place = torch.cat([(row * over).cos(), (row * over).sin(), (column * over).cos(), (column * over).sin()])
            tokens.append(square @ net.stem.weight.flatten(1).T + net.stem.bias + place)
    h = torch.stack(tokens, 1)

    def norm(h):
        return (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()

    for block in net.blocks:
        (a, b, c), (d, e, f) = ((v[:, None] for v in part.chunk(3, 1)) for part in block.adaln(emb).chunk(2, 1))
        q, k, v = block.qkv(norm(h) * (1 + b) + a).chunk(3, -1)
        found = []
        for head in torch.arange(width).chunk(block.heads):
            scores = torch.einsum("bnc,bmc->bnm", q[..., head], k[..., head]) / len(head) ** 0.5
            found.append(torch.softmax(scores, -1) @ v[..., head])
        h = h + c * block.out(torch.cat(found, -1))
        inside = block.mlp[0](norm(h) * (1 + e) + d)
        inside = 0.5 * inside * (1 + torch.tanh((2 / math.pi) ** 0.5 * (inside + 0.044715 * inside**3)))
        h = h + f * block.mlp[2](inside)
    shift, scale = net.adaln(emb)[:, None].chunk(2, -1)
    h = net.out(norm(h) * (1 + scale) + shift)
    out = torch.empty(len(x), net.out.out_features // p**2, net.size, net.size, dtype=x.dtype)
    for i in range(side**2):
        row, column = i // side * p, i % side * p
        out[:, :, row : row + p, column : column + p] = h[:, i].reshape(len(x), -1, p, p)
    return out


@pytest.mark.parametrize("patch,heads,outputs", [(1, 2, None), (2, 4, 3)])
def test_the_transformer_against_its_definition(patch, heads, outputs):
    net = warm(DiT(2, 6, patch, width=16, depth=2, heads=heads, classes=3, outputs=outputs)).double()
    x, t = torch.randn(4, 2, 6, 6, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    net.places = net.places.double()
    net.blocks[0].mlp[0].weight.data *= 10  # where the two kinds of GELU differ
    cond = torch.tensor([0, 2, 3, 1])
    # positions were made in float32
    torch.testing.assert_close(net(x, t, cond), by_hand(net, x, t, cond), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(net(x, t), net(x, t, torch.full((4,), 3)))
    for i in range(4):
        torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1], cond[i : i + 1])[0], net(x, t, cond)[i])


def test_a_block_is_that_of_an_independent_library():
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    block, emb, x = warm(DiTBlock(16, 4)), torch.randn(3, 16), torch.randn(3, 9, 16)
    theirs = BasicTransformerBlock(
        16,
        4,
        4,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=2,
        attention_bias=True,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    q, k, v = (part.clone() for part in block.qkv.weight.detach().chunk(3))
    weights = {"to_q.weight": q, "to_k.weight": k, "to_v.weight": v, "to_out.0.weight": block.out.weight}
    weights |= {f"to_{name}.bias": part for name, part in zip("qkv", block.qkv.bias.detach().chunk(3), strict=True)}
    theirs.attn1.load_state_dict(weights | {"to_out.0.bias": block.out.bias})
    theirs.norm1.linear.load_state_dict(block.adaln.state_dict())
    theirs.ff.net[0].proj.load_state_dict(block.mlp[0].state_dict())
    theirs.ff.net[2].load_state_dict(block.mlp[2].state_dict())
    theirs.norm1.emb.forward = lambda *_, **__: emb  # the vector before its SiLU
    nothing = torch.zeros(3, dtype=torch.int64)
    want = theirs(x, timestep=nothing, class_labels=nothing)
    torch.testing.assert_close(block(x, F.silu(emb)), want, atol=2e-6, rtol=1e-5)
    # which channel holds which sine is a convention; how alike two places are is not
    places, other = DiT(1, 6, 2, width=16).places, get_2d_sincos_pos_embed(16, 3, base_size=3, output_type="pt")
    torch.testing.assert_close(places @ places.T, (other @ other.T).float(), atol=1e-5, rtol=1e-5)


def test_the_transformer_starts_as_the_identity_and_its_gates_learn_first():
    net = DiT(1, 4, 2, width=16, depth=2, classes=3)
    x, t = torch.randn(5, 1, 4, 4), torch.rand(5)
    tokens, emb = torch.randn(5, 4, 16), torch.randn(5, 16)
    assert (net(x, t) == 0).all() and all(torch.equal(block(tokens, emb), tokens) for block in net.blocks)
    torch.nn.init.normal_(net.out.weight)  # as after a step: until then this layer alone learns
    net(x, t).square().mean().backward()
    for block in net.blocks:
        learns = block.adaln.weight.grad.abs().sum(1).unflatten(0, (6, 16)).sum(1) > 0
        assert learns.tolist() == [False, False, True, False, False, True]
        others = (p for name, p in block.named_parameters() if not name.startswith("adaln"))
        assert all((p.grad == 0).all() for p in others)
    warm(net).zero_grad()
    net(x, t, torch.arange(5) % 4).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def test_without_positions_tokens_are_a_set():
    net, t = warm(DiT(1, 6, 2, width=16, depth=2)).double(), torch.rand(2, dtype=torch.float64)
    squares, order = torch.randn(2, 4, 9, dtype=torch.float64), torch.randperm(9)
    fold = functools.partial(F.fold, output_size=6, kernel_size=2, stride=2)
    apart = functools.partial(F.unfold, kernel_size=2, stride=2)
    placed = apart(net(fold(squares[..., order]), t)) - apart(net(fold(squares), t))[..., order]
    assert placed.abs().max() > 1e-2
    net.places.zero_()
    torch.testing.assert_close(apart(net(fold(squares[..., order]), t)), apart(net(fold(squares), t))[..., order])


# ---- words

TEXT = {"words": 20, "length": 5, "width": 12, "depth": 1, "heads": 2}
TOLD = {
    "unet": lambda **options: UNet(2, 16, (1, 2), attention=(1,), **options),
    "dit": lambda **options: DiT(2, 8, 2, width=16, depth=2, **options),
    "joint": lambda **options: DiT(2, 8, 2, width=16, depth=2, joint=True, **options),
}


def ask(n, dtype=torch.float64):
    """n pictures and times, and as many texts."""
    return torch.randn(n, 2, 8, 8, dtype=dtype), torch.rand(n, dtype=dtype), torch.randint(20, (n, 5))


def test_words_are_read_as_by_an_independent_library():
    net, tokens = warm(TextEncoder(20, 5, 12, depth=2, heads=3)).eval(), torch.randint(20, (4, 5))
    x = net.word.weight[tokens] + net.places
    for block in net.blocks:
        theirs = torch.nn.TransformerEncoderLayer(
            12, 3, 48, dropout=0.0, activation=functools.partial(F.gelu, approximate="tanh"), norm_first=True
        )
        own = {"norm1": block.norm1, "norm2": block.norm2, "self_attn.out_proj": block.out}
        own |= {"linear1": block.mlp[0], "linear2": block.mlp[2]}
        weights = {f"{name}.{key}": value for name, part in own.items() for key, value in part.state_dict().items()}
        weights |= {"self_attn.in_proj_weight": block.qkv.weight, "self_attn.in_proj_bias": block.qkv.bias}
        theirs.load_state_dict(weights)
        x = theirs(x.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(net(tokens), net.norm(x), atol=1e-6, rtol=1e-5)


def test_cross_attention_against_its_definition():
    """Place by place and head by head: words weighted by softmax of q k / sqrt(channels per head), added to x."""
    layer = warm(CrossAttention(8, 6, heads=2)).double()
    x, words = torch.randn(3, 4, 8, dtype=torch.float64), torch.randn(3, 5, 6, dtype=torch.float64)
    found = layer(x, words)
    normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    q = (normal * layer.norm.weight + layer.norm.bias) @ layer.q.weight.T + layer.q.bias
    k, v = (words @ part.T + bias for part, bias in zip(layer.kv.weight.chunk(2), layer.kv.bias.chunk(2), strict=True))
    for i in range(3):
        for place in range(4):
            got = []
            for head in (slice(0, 4), slice(4, 8)):
                share = (k[i, :, head] @ q[i, place, head] / 2).exp()
                got.append(share @ v[i, :, head] / share.sum())
            want = x[i, place] + layer.out.weight @ torch.cat(got) + layer.out.bias
            torch.testing.assert_close(found[i, place], want)
    order = torch.randperm(5)  # keys and values together: words are a set
    torch.testing.assert_close(layer(x, words[:, order]), found)
    assert (layer(x, words.roll(1, 0)) - found).abs().max() > 1e-4  # of another sample
    assert CrossAttention(96, 6).heads == 3 and torch.equal(CrossAttention(8, 6).double()(x, words), x)


def test_one_attention_over_both_is_a_mixture_of_two():
    """What a query finds in patches and words is what it finds in each, weighted by each one's sum of exponentials."""
    block = warm(JointBlock(8, 2)).double()
    x, words = torch.randn(3, 4, 8, dtype=torch.float64), torch.randn(3, 5, 8, dtype=torch.float64)
    emb = torch.randn(3, 8, dtype=torch.float64)
    asked = block.image.open(x, emb)[0], block.words.open(words, emb)[0]
    answers = block(x, words, emb)
    for stream, h, (q, _, _), found in zip((block.image, block.words), (x, words), asked, answers, strict=True):
        parts, sums = [], []
        for _, k, v in asked:  # each (batch, 2 heads, tokens, 4)
            weight = (torch.einsum("bhqd,bhkd->bhqk", q, k) / 2).exp()
            sums.append(weight.sum(-1, keepdim=True))
            parts.append(torch.einsum("bhqk,bhkd->bhqd", weight, v) / sums[-1])
        mixture = sum(z * part for z, part in zip(sums, parts, strict=True)) / sum(sums)
        torch.testing.assert_close(found, stream.close(h, mixture, stream.open(h, emb)[1]))
        for alone in parts:
            assert (stream.close(h, alone, stream.open(h, emb)[1]) - found).abs().max() > 1e-4


@pytest.mark.parametrize("last", [False, True])
def test_a_joint_block_is_that_of_an_independent_library(last):
    from diffusers.models.attention import JointTransformerBlock

    block, theirs = warm(JointBlock(16, 4, last)), JointTransformerBlock(16, 4, 4, context_pre_only=last)
    x, words, emb = torch.randn(3, 9, 16), torch.randn(3, 5, 16), torch.randn(3, 16)
    own = {"norm1.linear": block.image.adaln, "attn.to_out.0": block.image.out}
    own |= {
        "ff.net.0.proj": block.image.mlp[0],
        "ff.net.2": block.image.mlp[2],
        "norm1_context.linear": block.words.adaln,
    }
    if not last:
        own |= {"attn.to_add_out": block.words.out}
        own |= {"ff_context.net.0.proj": block.words.mlp[0], "ff_context.net.2": block.words.mlp[2]}
    weights = {f"{name}.{key}": value for name, part in own.items() for key, value in part.state_dict().items()}
    for kind in ("weight", "bias"):
        for name, part in zip("qkv", getattr(block.image.qkv, kind).chunk(3), strict=True):
            weights[f"attn.to_{name}.{kind}"] = part
        of_words = getattr(block.words.kv if last else block.words.qkv, kind)
        for name, part in zip("kv" if last else "qkv", of_words.chunk(2 if last else 3), strict=True):
            weights[f"attn.add_{name}_proj.{kind}"] = part
        if last:  # the library asks for the words, and throws the answers away; it has scale before shift
            weights[f"attn.add_q_proj.{kind}"] = torch.zeros_like(part)
            shift, scale = getattr(block.words.adaln, kind).chunk(2)
            weights[f"norm1_context.linear.{kind}"] = torch.cat([scale, shift])
    theirs.load_state_dict(weights)
    told, want = theirs(hidden_states=x, encoder_hidden_states=words, temb=emb)
    found, words_after = block(x, words, F.silu(emb))
    torch.testing.assert_close(found, want, atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(words_after, words if last else told, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("make", TOLD.values(), ids=TOLD)
def test_a_text_says_what_to_show(make):
    net, (x, t, cond) = warm(make(text=TEXT)).double(), ask(4)
    cond[0] = 0
    y = net(x, t, cond)
    assert net.null == 0 and y.shape == x.shape
    torch.testing.assert_close(net(x, t), net(x, t, torch.zeros_like(cond)))
    for i in range(4):
        torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1], cond[i : i + 1])[0], y[i])
    other = cond.clone()
    other[1, 3] = (other[1, 3] + 1) % 20  # one word of one text
    moved = (net(x, t, other) - y).abs().amax((1, 2, 3))
    assert moved[1] > 1e-5 and (moved[[0, 2, 3]] < 1e-12).all()
    assert (net(x, t, cond.flip(1)) - y)[1:].abs().amax((1, 2, 3)).min() > 1e-5  # the order counts
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("make", TOLD.values(), ids=TOLD)
def test_text_starts_without_effect_and_is_learned(make):
    net, (x, t, cond) = make(text=TEXT), ask(4, torch.float32)
    assert (net(x, t, cond) == 0).all()
    optimizer, learned = torch.optim.Adam(net.parameters(), 1e-3), []
    for _ in range(4):
        optimizer.zero_grad()
        (net(x, t, cond) - x).square().mean().backward()
        learned.append(net.text.word.weight.grad.abs().sum().item() > 0)
        optimizer.step()
    assert learned == [False, False, True, True]  # the last layer first, then what stands between it and the words


@pytest.mark.parametrize("make", [TOLD["unet"], TOLD["dit"]], ids=["unet", "dit"])
def test_weights_of_a_network_without_text_serve_one_with_it(make):
    plain, told, (x, t, cond) = warm(make()), make(text=TEXT), ask(4, torch.float32)
    missing, unexpected = told.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(key.startswith(("text.", "whole.")) or ".cross." in key for key in missing)
    torch.testing.assert_close(told(x, t, cond), plain(x, t))
    assert plain.null is None and make(**{"classes": 7}).null == 7
    for key in missing:
        if key.endswith(("cross.out.weight", "cross.out.bias")) or key.startswith("whole."):
            assert (told.state_dict()[key] == 0).all()
    looks = [name for name, module in told.named_modules() if isinstance(module, CrossAttention)]
    if isinstance(told, UNet):  # the middle, and each block of the level that has attention
        assert looks == [
            f"{place}.cross" for place in ("down.2.attention", "up.0.attention", "up.1.attention", "middle.1")
        ]
    else:
        assert looks == ["blocks.0.cross", "blocks.1.cross"]
    for name in looks:  # each is heard by itself
        layer = told.get_submodule(name)
        torch.nn.init.normal_(layer.out.weight, std=0.5)
        assert (told(x, t, cond) - plain(x, t)).abs().max() > 1e-4
        torch.nn.init.zeros_(layer.out.weight)
    torch.nn.init.normal_(told.whole.weight)
    assert (told(x, t, cond) - plain(x, t)).abs().max() > 1e-4


def test_the_old_digits_still_load():
    from companion import zoo

    digits = zoo.load("mnist").net
    twin = UNet(1, 32, (1, 2), classes=10, patch=2)
    twin.load_state_dict(digits.state_dict())
    assert digits.null == 10 and twin.text is None


@pytest.mark.parametrize("make", TOLD.values(), ids=TOLD)
def test_a_text_is_read_without_waiting_for_its_values(make):
    from torch._subclasses.fake_tensor import FakeTensorMode

    net = make(text=TEXT)
    with FakeTensorMode(allow_non_fake_inputs=True):  # where to look at a value raises
        x, t, cond = ask(3, torch.float32)
        assert net(x, t, cond).shape == net(x, t).shape == x.shape


def test_what_networks_with_text_refuse():
    x, t, cond = ask(3, torch.float32)
    for make in TOLD.values():
        net = make(text=TEXT)
        for wrong in (cond[:2], cond[:, :4], cond.float(), cond.int(), cond[0], cond[:, :, None]):
            with refuses(ValueError, r"cond must be int64 of shape \(3, 5\)"):
                net(x, t, wrong)
        with refuses(ValueError, "classes must be None"):
            make(text=TEXT, classes=3)
    with refuses(ValueError, "joint must be False"):
        DiT(joint=True)
    for wrong in ({"words": 0}, {"length": 0}, {"width": 0}, {"depth": 0}, {"heads": 0}, {"width": 13}):
        with refuses(ValueError, f"{next(iter(wrong))} must be"):
            TextEncoder(**TEXT | wrong)
    with refuses(ValueError, "tokens must be int64"):
        TextEncoder(**TEXT)(cond[:, :4])
    for wrong in ({"channels": 0}, {"context": 0}, {"heads": 0}, {"heads": 3}):
        with refuses(ValueError, "channels must be" if "heads" in wrong and wrong["heads"] else f"{next(iter(wrong))}"):
            CrossAttention(**{"channels": 8, "context": 6, "heads": 2} | wrong)
    layer = CrossAttention(8, 6)
    for shape in ((3, 5, 8), (2, 5, 6), (3, 6)):
        with refuses(ValueError, "words must have shape"):
            layer(torch.zeros(3, 4, 8), torch.zeros(shape))


# ---- counting


@pytest.mark.parametrize("joint", [False, True])
def test_what_text_costs_by_hand(joint):
    """Width w, context c, n patches, m words; what the network without text costs is counted above."""
    w, c, n, m, depth = 16, TEXT["width"], 16, 5, 2
    plain, told = DiT(2, 8, 2, w, depth), DiT(2, 8, 2, w, depth, text=TEXT, joint=joint)
    encoder = 20 * c + m * c + (12 * c * c + 9 * c + 4 * c) + 2 * c
    read = 12 * m * c * c + 2 * m * m * c + c * w  # products: the words read, and the mean over them
    if joint:
        stream = (3 * w * w + 3 * w) + (w * w + w) + (8 * w * w + 5 * w) + (6 * w * w + 6 * w)
        more = (c * w + w) + stream + 2 * (2 * w * w + 2 * w)
        looks = m * c * w + (12 * m * w * w + 6 * w * w) + (2 * m * w * w + 2 * w * w)
        looks += 2 * w * ((n + m) ** 2 - n * n) + 2 * w * n * m  # the last block has no queries from the words
    else:
        more = depth * (2 * w + 2 * (w * w + w) + (2 * c * w + 2 * w))
        looks = depth * (2 * n * w * w + 2 * m * c * w + 2 * n * m * w)
    assert count.parameters(told) - count.parameters(plain) == encoder + (c * w + w) + more
    x, t, cond = ask(3, torch.float32)
    assert count.flops(told, x, t, cond) - count.flops(plain, x, t) == 3 * 2 * (read + looks)


@pytest.mark.parametrize("patch,width,depth,classes", [(1, 16, 1, None), (2, 48, 3, 10)])
def test_the_transformer_s_counts_by_hand(patch, width, depth, classes):
    net, n, w = DiT(1, 8, patch, width, depth, 2, classes), (8 // patch) ** 2, width
    x, t = torch.randn(5, 1, 8, 8), torch.rand(5)
    block = (3 * w * w + 3 * w) + (w * w + w) + (8 * w * w + 5 * w) + (6 * w * w + 6 * w)
    ends = (patch**2 * w + w) + (2 * w * w + 2 * w) + (w * patch**2 + patch**2)
    told = 2 * (w * w + w) + (0 if classes is None else (classes + 1) * w)
    assert count.parameters(net) == depth * block + ends + told
    products = depth * (12 * n * w * w + 2 * n * n * w + 6 * w * w) + 2 * n * w * patch**2 + 2 * w * w + 2 * w * w
    assert count.flops(net, x, t) == 5 * 2 * products


def test_the_unet_s_count_from_the_shapes_of_its_layers():
    net, found = UNet(1, 16, (1, 2), classes=3, attention=(0,)), []

    def convolution(layer, inputs, output):
        found.append(2 * output.numel() * layer.weight[0].numel())

    def attention(layer, inputs, output):
        batch, channels, height, width = output.shape
        found.append(2 * 2 * batch * channels * (height * width) ** 2)

    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(convolution)
        if isinstance(module, Attention):
            module.register_forward_hook(attention)
    counted = count.flops(net, torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([0, 1]))
    assert counted == sum(found) > 1e6
    assert count.parameters(torch.nn.Conv2d(3, 5, 3)) == 3 * 5 * 9 + 5
    with refuses(TypeError, "net must be"):
        count.parameters(lambda x: x)


def test_what_the_transformer_refuses():
    for wrong in ({"patch": 3}, {"width": 30}, {"width": 36, "heads": 8}, {"depth": 0}, {"size": 0}):
        with refuses(ValueError, f"{next(iter(wrong))} must be"):
            DiT(**{"size": 8, "patch": 2, "heads": 2} | wrong)
    net = DiT(1, 8, 2, width=16, depth=1)
    for shape in ((1, 1, 8, 10), (1, 3, 8, 8), (1, 8, 8)):
        with refuses(ValueError, "x must have shape"):
            net(torch.zeros(shape), torch.zeros(1))
    with refuses(ValueError, "no classes"):
        net(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64))


def test_upsampling_is_nearest_and_keeps_its_gradient_when_compiled():
    """Under bfloat16 on a CPU, PyTorch 2.13 compiles F.interpolate, a convolution and a norm to a gradient of zero."""
    x = torch.randn(8, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    assert torch.equal(upsampled(x), F.interpolate(x, scale_factor=2.0, mode="nearest"))
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    first, second, last = (torch.nn.Conv2d(*each, 3, padding=1) for each in ((8, 64), (64, 32), (32, 12)))
    norm = torch.nn.GroupNorm(8, 32)
    for layer in (first, second, last):
        layer.to(memory_format=torch.channels_last)

    def loss(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = last(F.silu(norm(second(upsampled(first(x))))))
        return y.float().square().mean()

    eager = torch.autograd.grad(loss(x), first.weight)[0]
    compiled = torch.autograd.grad(torch.compile(loss, dynamic=False)(x), first.weight)[0]
    assert (compiled - eager).norm() < 0.05 * eager.norm()
