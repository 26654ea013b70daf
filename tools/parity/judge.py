"""judge_chat: the conversation that the judge is given, as transformers writes it with the published chat template.

The published template is no part of any package: QWEN_CHAT_TEMPLATE names a file that has it.
"""

import hashlib
import os
import pathlib
import re

from PIL import Image
from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

import words
from common import Case, image, write_json
from qwen_vl import PUBLISHED_PROCESSOR, VISION, published_config, text_config

TEMPLATE = pathlib.Path(__file__).parents[2] / "models" / "src" / "judge" / "default_template.txt"

PLACES = r"(\{source_image\}|\{edited_image\})"


def messages(text, pictures):
    """The judge's template as messages: what stands between its marks of turns, images in their places."""
    turns = text.split("<|im_start|>")[1:]
    assert turns.pop() == "assistant\n"
    result = []
    for turn in turns:
        role, content = turn.split("\n", 1)
        assert content.endswith("<|im_end|>\n")
        pieces = [piece for piece in re.split(PLACES, content.removesuffix("<|im_end|>\n")) if piece]
        parts = [
            {"type": "image", "image": pictures[piece]} if piece in pictures else {"type": "text", "text": piece}
            for piece in pieces
        ]
        result.append({"role": role, "content": parts if role == "user" else pieces[0]})
    return result


def write(variant, chat_template, prompt, requirement, sizes):
    tokenizer = words.qwen(model_max_length=2048)
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "vision_start", "vision_end")}
    config = published_config(text_config(vocab_size=len(tokenizer), max_position_embeddings=4096), dict(VISION))
    config |= {
        "image_token_id": ids["image_pad"], "vision_start_token_id": ids["vision_start"],
        "vision_end_token_id": ids["vision_end"], "video_token_id": len(tokenizer),
    }
    preprocessor = {**PUBLISHED_PROCESSOR, "patch_size": VISION["patch_size"], "min_pixels": 256, "max_pixels": 4096}
    options = {name: value for name, value in preprocessor.items() if not name.endswith(("_type", "_class"))}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**options), tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**options), chat_template=chat_template,
    )
    pictures = [image(700 + index, *size) for index, size in enumerate(sizes)]
    text = TEMPLATE.read_text().replace("{instruction}", prompt).replace("{requirement}", requirement)
    places = dict(zip(("{source_image}", "{edited_image}"), (Image.fromarray(picture.numpy()) for picture in pictures)))
    inputs = processor.apply_chat_template(
        messages(text, places), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
    )
    case = Case(
        "judge_chat", variant, prompt=prompt, requirement=requirement,
        chat_template_sha256=hashlib.sha256(chat_template.encode()).hexdigest(),
    )
    case.config(config)
    write_json(case.path("preprocessor_config.json"), preprocessor)
    words.save(tokenizer, case.path("tokenizer.json"))
    case.inputs(source=pictures[0], edited=pictures[1])
    case.outputs(ids=inputs["input_ids"][0])
    case.save()


def make():
    chat_template = pathlib.Path(os.environ["QWEN_CHAT_TEMPLATE"]).read_text()
    write(
        "default_template", chat_template, "Replace the yellow star with a purple cross, don't move it!",
        "The rest of the picture must stay as it is.", [(40, 56), (33, 90)],
    )
