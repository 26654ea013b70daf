"""What every component module shares: a case folder, seeded weights, and bytes that do not change from run to run."""

import json
import math
import pathlib

import torch
from safetensors.torch import save_file

CASES = pathlib.Path(__file__).parent / "cases"


class Case:
    """One case folder, `cases/<component>__<variant>/`, filled by its component's module."""

    def __init__(self, component, variant, **parameters):
        self.parameters = {"component": component, **parameters}
        self.folder = CASES / f"{component}__{variant}"
        self.folder.mkdir(parents=True)
        self.tensors = {}

    def path(self, name):
        return self.folder / name

    def config(self, config):
        """Writes config.json: a dict, or a module or config object that has `save_config` or `to_json_string`."""
        write_json(self.path("config.json"), config)

    def weights(self, tensors):
        write_tensors(self.path("weights.safetensors"), tensors)

    def inputs(self, **tensors):
        self._add("in.", tensors)

    def outputs(self, tensors=None, **more):
        self._add("out.", {**(tensors or {}), **more})

    def gradients(self, tensors):
        self._add("grad.", tensors)

    def _add(self, prefix, tensors):
        for name, tensor in tensors.items():
            tensor = torch.as_tensor(tensor).detach().clone().contiguous()
            if tensor.is_floating_point():
                assert torch.isfinite(tensor).all(), f"{self.folder.name}: {prefix}{name} is not finite"
            self.tensors[prefix + name] = tensor

    def save(self):
        write_tensors(self.path("io.safetensors"), self.tensors)
        lines = [f"{name} = {toml_value(value)}" for name, value in self.parameters.items()]
        self.path("case.toml").write_text("\n".join(lines) + "\n")


def toml_value(value):
    """A TOML literal: JSON's strings, booleans, numbers and lists are TOML too."""
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def write_json(path, config):
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_tensors(path, tensors):
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})


def generator(seed):
    return torch.Generator().manual_seed(seed)


def randn(seed, *shape, std=1.0):
    return torch.randn(*shape, generator=generator(seed)) * std


def randomise(module, seed, gain=1.0):
    """Fills a module so that outputs are of order one and every parameter matters.

    Linear and convolution weights get std gain / sqrt(fan in), embeddings 1, biases 0.2, and norms' scales 1 +- 0.2.
    """
    state = generator(seed)
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, torch.nn.Embedding)}
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=state)
            if id(parameter) in embeddings:
                parameter.copy_(noise)
            elif parameter.dim() == 1:
                centre = 1.0 if name.endswith("weight") else 0.0
                parameter.copy_(centre + 0.2 * noise)
            else:
                fan_in = math.prod(parameter.shape[1:])
                parameter.copy_(noise * gain / math.sqrt(fan_in))
    return module.eval()


def round_to_bf16(module):
    """Rounds the weights to bf16 and keeps f32 arithmetic: what a bf16 checkpoint means to an f32 forward."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())
    return module


def to_bf16(module):
    """Makes parameters bf16 and leaves buffers f32, as `from_pretrained(dtype=torch.bfloat16)` does."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return module


def cast(tensors, dtype, names):
    """The tensors with some of them in another type."""
    return {name: tensor.to(dtype) if name in names else tensor for name, tensor in tensors.items()}


def assert_survives_bf16(outputs, exact):
    """Fails unless outputs computed in bf16 are those of f32 arithmetic to half of what a test allows.

    A model too deep or too small for its outputs to survive rounding would prove nothing.
    """
    assert outputs.keys() == exact.keys()
    for name, output in outputs.items():
        found, wanted = [tensor.detach().double().flatten() for tensor in (output, exact[name])]
        cosine = torch.nn.functional.cosine_similarity(found, wanted, dim=0).item()
        norm = (found.norm() / wanted.norm()).item()
        assert cosine > 0.9995 and abs(norm - 1) < 0.015, f"{name}: bf16 has a cosine of {cosine}, a norm of {norm}"


@torch.no_grad()
def write_bf16(component, variant, model, config, compute, inputs, stored=(), weights=torch.nn.Module.state_dict):
    """A case whose storage and arithmetic are bf16.

    `compute(model, **inputs)` gives the outputs by name; `stored` are the inputs that come in the model's type, and
    `weights` gives the tensors as they are published.
    """
    inputs = cast(inputs, torch.bfloat16, stored)
    exact = compute(round_to_bf16(model), **cast(inputs, torch.float32, stored))
    outputs = compute(to_bf16(model), **inputs)
    assert_survives_bf16(outputs, exact)
    case = Case(component, variant, dtype="bf16", min_cosine=0.999)
    case.config(config)
    case.weights(weights(model))
    case.inputs(**inputs)
    case.outputs(outputs)
    case.save()


def public_config(module):
    """A diffusers config as `save_config` writes it."""
    return json.loads(module.to_json_string())


def image(seed, height, width):
    """A u8 picture with edges, gradients and noise, so that resampling errors show."""
    y = torch.linspace(0, 1, height)[:, None, None]
    x = torch.linspace(0, 1, width)[None, :, None]
    phase = torch.tensor([0.0, 1.3, 2.1])
    waves = 0.5 + 0.35 * torch.sin(9 * x + phase) * torch.cos(7 * y - phase)
    square = ((x > 0.3) & (x < 0.6) & (y > 0.2) & (y < 0.7)).float() * torch.tensor([0.5, -0.3, 0.2])
    noise = torch.rand(height, width, 3, generator=generator(seed)) * 0.15
    return ((waves + square + noise).clamp(0, 1) * 255).round().to(torch.uint8)
