"""Edit-R1 on the quickstart's models in PyTorch: what one would write without Retouch, timed stage by stage.

Models come from the same folders through diffusers and transformers, the adapter through peft. `--tuned` is that with all
ordinary means to make it faster: policies without a gradient are merged, a group is judged in one batch, AdamW is fused.
Run by `torch.distributed.run`, it is data parallel over gloo. One JSON line per iteration, and a last one with memory and
the time from the start of the process to the first decoded group.
"""

import argparse
import json
import os
import resource
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import psutil

STARTED = psutil.Process().create_time()

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from peft import LoraConfig
from PIL import Image
from transformers import AutoImageProcessor, CLIPTextModel, PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration, T5EncoderModel

# examples/quickstart.toml and the defaults behind it.
GROUPS, GROUP_SIZE, STEPS, GUIDANCE, TEXT_TOKENS = 8, 12, 6, 2.5, 17
TIMESTEPS = 3  # of the six, by timestep_fraction = 0.5
RANK, ALPHA = 32, 64.0
PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
NFT_BETA, KL_BETA, ADVANTAGE_CLIP, ADVANTAGE_EPS = 1.0, 1e-4, 5.0, 1e-4
LEARNING_RATE, WEIGHT_DECAY, GRADIENT_NORM_MAX = 2e-3, 1e-4, 1.0
FILTER_MEAN, FILTER_STD = 0.9, 0.05
EMA_DECAY_MAX, OLD_RISE, OLD_DECAY_MAX = 0.9, 0.001, 0.5


class Clock:
    """Seconds by stage."""

    def __init__(self):
        self.seconds = {}

    @contextmanager
    def __call__(self, stage):
        begin = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin


@dataclass
class Group:
    """An (image, instruction) pair with its candidates."""

    number: int
    row: dict
    source: np.ndarray = None
    condition: tuple = None
    latents: torch.Tensor = None
    edits: torch.Tensor = None
    rewards: list = None
    advantages: np.ndarray = None


class Encoders:
    """Everything of a FluxKontextPipeline folder but the transformer."""

    def __init__(self, folder):
        f32 = {"torch_dtype": torch.float32}
        self.vae = AutoencoderKL.from_pretrained(folder / "vae", **f32)
        self.clip = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        self.t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2", dtype=torch.float32)
        self.tokenizers = [PreTrainedTokenizerFast.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")]
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
        for module in (self.vae, self.clip, self.t5):
            module.eval().requires_grad_(False)

    def encode(self, prompt, pixels):
        ids = [
            tokenizer(prompt, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt").input_ids
            for tokenizer in self.tokenizers
        ]
        pooled, text = self.clip(ids[0]).pooler_output, self.t5(ids[1]).last_hidden_state
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = self.vae.encode(image).latent_dist.mode()
        scaled = (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor
        return text, pooled, pack(scaled)

    def decode(self, latents):
        scaled = unpack(latents) / self.vae.config.scaling_factor + self.vae.config.shift_factor
        image = self.vae.decode(scaled, return_dict=False)[0].float()
        return ((image / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

    def sigmas(self, tokens):
        config = self.scheduler.config
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        mu = config.base_shift + slope * (tokens - config.base_image_seq_len)
        self.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS), mu=mu)
        return self.scheduler.sigmas.tolist()


def pack(latents):
    rows, channels, height, width = latents.shape
    squares = latents.view(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(rows, height * width // 4, channels * 4)


def unpack(tokens):
    rows, count, channels = tokens.shape
    side = int(count**0.5)
    squares = tokens.view(rows, side, side, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(rows, channels // 4, 2 * side, 2 * side)


def positions(tokens):
    """Of the noise's tokens (image 0) and of the source's (image 1)."""
    side = int(tokens**0.5)
    grid = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()
    return torch.cat([torch.cat([torch.full((tokens, 1), float(image)), grid], 1) for image in (0, 1)])


class Policies:
    """The trained policy, the one that samples (old) and the base (ref)."""

    def __init__(self, folder, tuned):
        load = lambda: FluxTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32).eval().requires_grad_(False)
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, init_lora_weights="gaussian", target_modules=PROJECTIONS)
        self.model, self.tuned = load(), tuned
        self.model.add_adapter(config, adapter_name="theta")
        if tuned:
            self.base, self.merged = load(), load()
        else:
            self.model.add_adapter(config, adapter_name="old")
            self.model.set_adapter("theta")
        self.theta = self.parameters_of("theta")
        self.old = {name: value.detach().clone() for name, value in self.theta.items()}
        self.ema = {name: value.detach().clone() for name, value in self.theta.items()}

    def parameters_of(self, adapter):
        tag = f".{adapter}."
        return {name.replace(tag, "."): value for name, value in self.model.named_parameters() if tag in name}

    def start_from(self, values):
        with torch.no_grad():
            for name, value in values.items():
                for adapter in (self.theta, self.old, self.ema):
                    adapter[name].copy_(value.view_as(adapter[name]))

    @torch.no_grad()
    def publish(self):
        """Puts the old policy's values where they are used."""
        if not self.tuned:
            for name, value in self.parameters_of("old").items():
                value.copy_(self.old[name])
            return
        base, merged = dict(self.base.named_parameters()), dict(self.merged.named_parameters())
        for name, down in self.old.items():
            if ".lora_A." in name:
                up, weight = self.old[name.replace("lora_A", "lora_B")], name.replace(".lora_A", "")
                merged[weight].copy_(torch.addmm(base[weight], up, down, alpha=ALPHA / RANK))

    @contextmanager
    def policy(self, name):
        if self.tuned:
            yield {"theta": self.model, "old": self.merged, "ref": self.base}[name]
        elif name == "ref":
            self.model.disable_adapters()
            yield self.model
            self.model.enable_adapters()
        else:
            self.model.set_adapter(name)
            yield self.model
            self.model.set_adapter("theta")

    def follow(self, step):
        """EMA and old policy after an update."""
        values = [value.detach() for value in self.theta.values()]
        ema, old = min((1 + step) / (10 + step), EMA_DECAY_MAX), min(OLD_RISE * step, OLD_DECAY_MAX)
        torch._foreach_lerp_(list(self.ema.values()), values, 1 - ema)
        torch._foreach_lerp_(list(self.old.values()), values, 1 - old)
        self.publish()


def velocity(model, x, t, condition, ids):
    text, pooled, image = (part.expand(len(x), *part.shape[1:]) for part in condition)
    predicted = model(
        hidden_states=torch.cat([x, image], 1),
        timestep=t,
        guidance=torch.full((len(x),), GUIDANCE),
        pooled_projections=pooled,
        encoder_hidden_states=text,
        txt_ids=torch.zeros(TEXT_TOKENS, 3),
        img_ids=ids,
        return_dict=False,
    )[0]
    return predicted[:, : x.shape[1]].float()


def dpm2(model, x, condition, sigmas, ids):
    """DPM-Solver++ (2M), of first order where sigma is 1 before, or 0 after."""
    snr = lambda sigma: np.log((1 - sigma) / sigma)
    last = None
    for i in range(STEPS):
        sigma, after = sigmas[i], sigmas[i + 1]
        x0 = x - sigma * velocity(model, x, torch.full((len(x),), sigma), condition, ids)
        towards = x0
        if i > 1 and after > 0:
            ratio = (snr(after) - snr(sigma)) / (snr(sigma) - snr(sigmas[i - 1]))
            towards = x0 + 0.5 * ratio * (x0 - last)
        x = after / sigma * x + ((1 - after) - (1 - sigma) * after / sigma) * towards
        last = x0
    return x


class Judge:
    """A Qwen2.5-VL folder; the reward is the expectation of the digit after one prefill."""

    def __init__(self, folder, grouped):
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.model.eval().requires_grad_(False)
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        self.processor = AutoImageProcessor.from_pretrained(folder)
        self.template = (folder / "template.txt").read_text().removesuffix("\n")
        self.digits = self.tokenizer.convert_tokens_to_ids(list("012345"))
        self.image = self.model.config.image_token_id
        self.rows = GROUP_SIZE if grouped else 1

    def score(self, group):
        return [reward for edits in group.edits.split(self.rows) for reward in self.ask(group, edits)]

    def ask(self, group, edits):
        image = "<|vision_start|><|image_pad|><|vision_end|>"
        text = self.template.format(
            instruction=group.row["prompt"], requirement=group.row["requirement"], source_image=image, edited_image=image
        )
        pictures = [Image.fromarray(pixels) for edit in edits.numpy() for pixels in (group.source, edit)]
        inputs = self.processor(images=pictures, return_tensors="pt")
        per_image = int(inputs.image_grid_thw[0].prod()) // self.processor.merge_size**2
        ids = [[token] * (per_image if token == self.image else 1) for token in self.tokenizer(text).input_ids]
        ids = torch.tensor([sum(ids, [])]).expand(len(edits), -1)
        logits = self.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == self.image).int(),
            pixel_values=inputs.pixel_values,
            image_grid_thw=inputs.image_grid_thw,
            logits_to_keep=1,
            use_cache=False,
        ).logits
        digits = logits[:, -1, self.digits].double().softmax(-1)
        return (digits @ torch.arange(6.0, dtype=torch.float64) / 5).tolist()


def nft_loss(x0, x_t, t, r, v_theta, v_old, v_ref):
    """DiffusionNFT's loss of each (sample, timestep), and the distance from the base."""
    mean = lambda x: x.flatten(1).mean(1)

    def branch(v):
        off = x_t - t * v - x0
        return mean(off.square()) / mean(off.detach().double().abs()).clamp_min(1e-5).float()

    positive = branch(NFT_BETA * v_theta + (1 - NFT_BETA) * v_old)
    negative = branch((1 + NFT_BETA) * v_old - NFT_BETA * v_theta)
    policy = ADVANTAGE_CLIP / NFT_BETA * (r * positive + (1 - r) * negative)
    return policy, mean((v_theta - v_ref).square())


class TorchDraws:
    """Random numbers for timed runs."""

    def __init__(self, seed, rank):
        self.generator = torch.Generator().manual_seed(1000 * seed + rank)
        self.seed = seed

    def order(self, rows):
        return torch.randperm(rows, generator=torch.Generator().manual_seed(self.seed)).tolist()

    def noise(self, purpose, iteration, places, shape):
        return torch.randn((len(places), *shape), generator=self.generator)

    def timesteps(self, iteration, group, sample):
        return torch.randperm(STEPS, generator=self.generator)[:TIMESTEPS].tolist()


class RetouchDraws:
    """Retouch's random numbers: both sides then compute the same."""

    def __init__(self, seed):
        import draws

        self.draws, self.seed = draws, seed

    def order(self, rows):
        return self.draws.permutation(self.draws.derive(self.seed, "prompt-order"), rows)

    def noise(self, purpose, iteration, places, shape):
        seeds = [self.draws.derive(self.seed, purpose, iteration, *place) for place in places]
        rows = [self.draws.normal(seed, int(np.prod(shape))) for seed in seeds]
        return torch.from_numpy(np.stack(rows)).view(len(places), *shape)

    def timesteps(self, iteration, group, sample):
        seed = self.draws.derive(self.seed, "train-timesteps", iteration, group, sample)
        return self.draws.permutation(seed, STEPS)[:TIMESTEPS]

    def first_adapter(self, names, sizes):
        values = self.draws.normal(self.draws.derive(self.seed, "lora-init"), sum(sizes)) / RANK
        return dict(zip(names, torch.from_numpy(values).split(sizes)))


class Run:
    def __init__(self, args):
        self.args, assets = args, Path(args.assets)
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.encoders = Encoders(assets / "editor")
        self.judge = Judge(assets / "judge", args.tuned)
        torch.manual_seed(args.seed)
        self.policies = Policies(assets / "editor/transformer", args.tuned)
        self.optimizer = torch.optim.AdamW(
            self.policies.theta.values(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=args.tuned or None
        )
        self.dataset = assets / "dataset"
        self.rows = [json.loads(line) for line in open(self.dataset / "train_metadata.jsonl")]
        self.draws = RetouchDraws(args.seed) if args.same_numbers else TorchDraws(args.seed, self.rank)
        if args.same_numbers:
            names = sorted((name for name in self.policies.theta if "lora_A" in name), key=place_of)
            self.policies.start_from(self.draws.first_adapter(names, [self.policies.theta[n].numel() for n in names]))
        self.policies.publish()
        self.order = self.draws.order(len(self.rows))
        side = 8
        self.shape = (side * side, 4 * self.encoders.vae.config.latent_channels)
        self.sigmas, self.ids = self.encoders.sigmas(side * side), positions(side * side)
        self.position, self.step, self.banned, self.first_rollout_s = 0, 0, set(), None

    def autocast(self):
        return torch.autocast("cpu", torch.bfloat16) if self.args.dtype == "bf16" else nullcontext()

    def next_groups(self):
        groups = []
        while len(groups) < GROUPS:
            row = self.order[self.position % len(self.rows)]
            self.position += 1
            if row not in self.banned:
                groups.append(Group(len(groups), self.rows[row] | {"index": row}))
        return groups

    @torch.inference_mode()
    def collect(self, groups, clock):
        for group in groups:
            with clock("encode"), self.autocast():
                group.source = np.array(Image.open(self.dataset / group.row["image"]).convert("RGB"))
                group.condition = self.encoders.encode(group.row["prompt"], group.source)
            with clock("sample"), self.autocast(), self.policies.policy("old") as model:
                places = [(group.number, sample) for sample in range(GROUP_SIZE)]
                noise = self.draws.noise("rollout-noise", self.step + 1, places, self.shape)
                group.latents = dpm2(model, noise, group.condition, self.sigmas, self.ids).float()
            with clock("decode"), self.autocast():
                group.edits = self.encoders.decode(group.latents).contiguous()
            if self.first_rollout_s is None:
                self.first_rollout_s = time.time() - STARTED
            with clock("judge"), self.autocast():
                group.rewards = self.judge.score(group)

    def filter(self, groups):
        """Advantages by the spread of all rewards; without the groups that are solved."""
        spread = np.std([group.rewards for group in groups])
        kept = []
        for group in groups:
            rewards = np.array(group.rewards)
            group.advantages = (rewards - rewards.mean()) / (spread + ADVANTAGE_EPS)
            if rewards.mean() > FILTER_MEAN and rewards.std() < FILTER_STD:
                self.banned.add(group.row["index"])
            else:
                kept.append(group)
        return kept

    def share(self, mine, groups):
        """Every rank gets all groups, and then learns from its share of what is kept."""
        parts = [None] * self.ranks
        dist.all_gather_object(parts, [(group.number, group.rewards, group.latents, group.condition) for group in mine])
        for number, *made in sum(parts, []):
            groups[number].rewards, groups[number].latents, groups[number].condition = made

    def learn(self, groups, clock):
        pairs = len(groups) * GROUP_SIZE * TIMESTEPS
        sums = torch.zeros(2, dtype=torch.float64)
        drawn = [[self.draws.timesteps(self.step + 1, group.number, i) for i in range(GROUP_SIZE)] for group in groups]
        batches = [(group, steps, j) for group, steps in zip(groups, drawn) for j in range(TIMESTEPS)]
        for group, steps, j in batches[self.rank :: self.ranks]:
            with clock("learn: noise"):
                places = [(group.number, sample, j) for sample in range(GROUP_SIZE)]
                noise = self.draws.noise("train-noise", self.step + 1, places, self.shape)
                sigma = torch.tensor([self.sigmas[chosen[j]] for chosen in steps])
                t = sigma[:, None, None]
                x_t = (1 - t) * group.latents + t * noise
                r = np.clip(group.advantages / ADVANTAGE_CLIP, -1, 1) / 2 + 0.5
            predict = lambda model: velocity(model, x_t, sigma, group.condition, self.ids)
            frozen = {}
            for name in ("old", "ref"):
                with clock(f"learn: v_{name}"), torch.no_grad(), self.autocast(), self.policies.policy(name) as model:
                    frozen[name] = predict(model)
            with clock("learn: forward"), self.policies.policy("theta") as model:
                with self.autocast():
                    v_theta = predict(model)
                r = torch.from_numpy(r).float()
                policy, kl = nft_loss(group.latents, x_t, t, r, v_theta, frozen["old"], frozen["ref"])
                loss = (policy + KL_BETA * kl).sum() / pairs
            with clock("learn: backward"):
                loss.backward()
            sums += torch.stack([policy.detach().sum(), kl.detach().sum()]).double()
        with clock("learn: update"):
            if self.ranks > 1:
                dist.all_reduce(sums)
            norm = self.update()
        policy_loss, kl = (sums / pairs).tolist()
        return {"policy_loss": policy_loss, "kl_div": kl, "grad_norm": norm, "pairs": pairs}

    def update(self):
        parameters = list(self.policies.theta.values())
        if self.ranks > 1:
            flat = torch.cat([value.grad.flatten() for value in parameters])
            dist.all_reduce(flat)
            for value, part in zip(parameters, flat.split([value.numel() for value in parameters])):
                value.grad = part.view_as(value)
        norm = torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM_MAX).item()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.policies.follow(self.step + 1)
        return norm

    def iteration(self):
        clock = Clock()
        with clock("iteration"):
            groups = self.next_groups()
            mine = groups[self.rank :: self.ranks]
            self.collect(mine, clock)
            with clock("gather"):
                if self.ranks > 1:
                    self.share(mine, groups)
            kept = self.filter(groups)
            with clock("learn"):
                metrics = self.learn(kept, clock) if kept else {"pairs": 0}
        self.step += 1
        rewards = np.array([group.rewards for group in groups])
        measured = {"iteration": self.step, "kept": len(kept), "reward_mean": float(rewards.mean()), **metrics}
        return measured | {"seconds": clock.seconds}


def place_of(name):
    """Retouch's order of an adapter's layers: joint blocks, then single ones, each in the order of their projections."""
    block, projection = name.split(".attn.")
    return block.startswith("single"), int(block.split("blocks.")[1]), PROJECTIONS.index(projection.split(".lora_")[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", default="assets/tiny")
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2, help="of each rank")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="bf16 is autocast")
    parser.add_argument("--same-numbers", action="store_true", help="draw what Retouch draws")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    run = Run(args)
    for _ in range(args.iterations):
        line = run.iteration()
        if run.rank == 0:
            print(json.dumps(line), flush=True)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, run.first_rollout_s
    ranks = [own]
    if dist.is_initialized():
        ranks = [None] * run.ranks
        dist.all_gather_object(ranks, own)
        dist.destroy_process_group()
    if run.rank == 0:
        memory, first = zip(*ranks)
        print(json.dumps({"peak_mib": sum(memory), "first_rollout_s": min(first)}), flush=True)


if __name__ == "__main__":
    main()
