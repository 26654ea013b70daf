"""t5_encoder and clip_text: transformers' T5EncoderModel and CLIPTextModel."""

import json

import torch
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from common import Case, generator, randomise, round_to_bf16, write_bf16


def config_of(model):
    """config.json as `save_pretrained` writes it."""
    return json.loads(model.config.to_json_string(use_diff=True))


def token_ids(seed, low, high, *shape):
    return torch.randint(low, high, shape, generator=generator(seed))


def t5_weights(model):
    weights = dict(model.state_dict())
    weights.pop("encoder.embed_tokens.weight", None)  # tied to shared.weight, published once
    return weights


@torch.no_grad()
def write_t5(variant, model, ids, mask, dtype=torch.float32):
    case = Case("t5_encoder", variant)
    case.config(config_of(model))
    case.weights({name: weight.to(dtype) for name, weight in t5_weights(model).items()})
    case.inputs(input_ids=ids)
    if mask is not None:
        case.inputs(attention_mask=mask)
    case.outputs(last_hidden_state=model(input_ids=ids, attention_mask=mask).last_hidden_state)
    case.save()


def t5(seed, **config):
    return randomise(T5EncoderModel(T5Config(feed_forward_proj="gated-gelu", **config)), seed)


def make_t5():
    model = t5(71, vocab_size=90, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    write_t5("gated_gelu", model, token_ids(72, 0, 90, 2, 37), None)

    model = t5(
        81, vocab_size=60, d_model=40, d_kv=12, d_ff=64, num_layers=2, num_heads=3,
        relative_attention_num_buckets=12, relative_attention_max_distance=20, layer_norm_epsilon=1e-5,
    )
    mask = (torch.arange(29)[None, :] < torch.tensor([29, 11, 3])[:, None]).long()
    write_t5("masked_bf16", round_to_bf16(model), token_ids(82, 0, 60, 3, 29) * mask, mask, torch.bfloat16)

    model = t5(111, vocab_size=70, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    mask = (torch.arange(23)[None, :] < torch.tensor([23, 9])[:, None]).long()
    write_bf16(
        "t5_encoder", "computed_in_bf16", model, config_of(model),
        lambda model, **inputs: {"last_hidden_state": model(**inputs).last_hidden_state},
        {"input_ids": token_ids(112, 0, 70, 2, 23) * mask, "attention_mask": mask}, weights=t5_weights,
    )


def clip_outputs(model, input_ids):
    output = model(input_ids=input_ids)
    return {"last_hidden_state": output.last_hidden_state, "pooler_output": output.pooler_output}


def clip_weights(model, prefix="text_model."):
    return {prefix + name: weight for name, weight in model.state_dict().items()}


@torch.no_grad()
def write_clip(variant, model, ids, prefix):
    case = Case("clip_text", variant)
    case.config(config_of(model))
    case.weights(clip_weights(model, prefix))
    case.inputs(input_ids=ids)
    case.outputs(clip_outputs(model, ids))
    case.save()


def padded_prompts(seed, vocab, bos, eos, pad, length, sizes):
    """Rows `bos words eos pad...`, the words drawn below every special id."""
    ids = torch.full((len(sizes), length), pad)
    for row, size in enumerate(sizes):
        ids[row, 0] = bos
        ids[row, 1 : 1 + size] = token_ids(seed + row, 3, vocab - 3, size)
        ids[row, 1 + size] = eos
    return ids


def make_clip():
    # The published FLUX file: quick_gelu, keys under text_model, and eos_token_id 2, which means "pool at the highest id".
    config = CLIPTextConfig(
        vocab_size=80, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=15, hidden_act="quick_gelu", bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )
    model = randomise(CLIPTextModel(config), 91)
    write_clip("quick_gelu_legacy_eos", model, padded_prompts(92, 80, 78, 79, 79, 15, [4, 13, 1]), "text_model.")

    # Keys as transformers 5 saves them, and an end token that is not the highest id and is also the padding.
    config = CLIPTextConfig(
        vocab_size=70, hidden_size=30, intermediate_size=50, num_hidden_layers=2, num_attention_heads=3,
        max_position_embeddings=21, hidden_act="gelu", bos_token_id=68, eos_token_id=67, pad_token_id=67,
    )
    model = randomise(CLIPTextModel(config), 101)
    ids = padded_prompts(102, 70, 68, 67, 67, 13, [2, 11])
    ids[0, 2] = 69
    write_clip("gelu_first_eos", model, ids, "")

    config = CLIPTextConfig(
        vocab_size=80, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=15, hidden_act="quick_gelu", bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )
    model = randomise(CLIPTextModel(config), 121)
    write_bf16(
        "clip_text", "computed_in_bf16", model, config_of(model), clip_outputs,
        {"input_ids": padded_prompts(122, 80, 78, 79, 79, 15, [6, 13, 2])}, weights=clip_weights,
    )
