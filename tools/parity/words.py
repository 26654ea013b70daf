"""tokenizer: small tokenizers of the three kinds that the editors and the judge use, trained on a few sentences."""

import collections
import io
import json
import tempfile

import sentencepiece
import sentencepiece.sentencepiece_model_pb2 as sentencepiece_model
from tokenizers import Tokenizer, pre_tokenizers
from transformers import CLIPTokenizer, Qwen2Tokenizer, T5Tokenizer

from common import Case

SENTENCES = [
    "Add a red circle to the left of the green square.",
    "Remove the blue triangle from the picture, and keep everything else unchanged.",
    "Replace the yellow star with a purple cross.",
    "Change the background colour to light grey; don't move the objects.",
    "Make the small square larger and the large circle smaller.",
    "Turn the picture into a pencil drawing in black and white.",
    "Extract the orange triangle onto a plain white background.",
    "Move the 2 green stars to the right, then paint 13 dots below them.",
    "It's raining: the sky should be darker, we'll need an umbrella.",
    "Recolour what you've drawn so that nothing looks like it'd been there before.",
    "Is the edited image 0, 1, 2, 3, 4 or 5? Answer with one digit.",
]

TEXTS = [
    "Add a red circle to the left of the green square.",
    "remove   the\n\tBLUE triangle, don't touch its 128 neighbours!  ",
    " It's 50% larger: naïve café, 画像を編集, Größe 🎨 — “quoted” ﬁne",
    "a",
]

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
"""The 256 printable stand-ins of bytes."""



def learn_merges(words, count):
    """Byte pair encoding: the most frequent neighbours join, ties going to the first in the alphabet.

    The trainer of `tokenizers` breaks ties by hash order, so that its result changes from run to run.
    """
    words = collections.Counter(words)
    merges = []
    while len(merges) < count:
        pairs = collections.Counter()
        for word, frequency in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += frequency
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        joined = collections.Counter()
        for word, frequency in words.items():
            joined[join(word, best)] += frequency
        words = joined
    return merges


def join(word, pair):
    pieces, index = [], 0
    while index < len(word):
        if word[index : index + 2] == pair:
            pieces.append("".join(pair))
            index += 2
        else:
            pieces.append(word[index])
            index += 1
    return tuple(pieces)


def vocabulary(letters, merges, specials):
    tokens = [*letters, *("".join(pair) for pair in merges), *specials]
    return {token: index for index, token in enumerate(tokens)}


def clip(**options):
    """CLIP: lower case, bytes with and without </w>, the start and end tokens last."""
    splitter = CLIPTokenizer().backend_tokenizer
    words = []
    for sentence in SENTENCES:
        pieces = splitter.pre_tokenizer.pre_tokenize_str(splitter.normalizer.normalize_str(sentence))
        words += [(*piece[:-1], piece[-1] + "</w>") for piece, _ in pieces]
    merges = learn_merges(words, 90)
    letters = [*LETTERS, *(letter + "</w>" for letter in LETTERS)]
    vocab = vocabulary(letters, merges, ["<|startoftext|>", "<|endoftext|>"])
    return CLIPTokenizer(vocab=vocab, merges=merges, **options)


QWEN_SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
]


def qwen(**options):
    """Qwen: byte-level pieces of case-kept text with their spaces, and tokens of the chat and of images."""
    splitter = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    words = [tuple(piece) for sentence in SENTENCES for piece, _ in splitter.pre_tokenize_str(sentence)]
    merges = learn_merges(words, 120)
    return Qwen2Tokenizer(
        vocab=vocabulary(LETTERS, merges, QWEN_SPECIALS), merges=merges,
        additional_special_tokens=QWEN_SPECIALS[1:], **options,
    )


NORMALISATION = {"ﬁ": "fi", "“": '"', "”": '"', "é": "e", "\t": " ", "\n": " ", "５": "5"}
"""Rules for SentencePiece's compiled normaliser, which the published T5 tokenizer has with thousands of them."""


def sentencepiece_unigram(folder, vocab_size):
    rules = [f"{codes(source)}\t{codes(target)}\n" for source, target in NORMALISATION.items()]
    with open(f"{folder}/rules.tsv", "w") as file:
        file.writelines(rules)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, model_type="unigram", vocab_size=vocab_size,
        num_threads=1, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", minloglevel=2,
        normalization_rule_tsv=f"{folder}/rules.tsv", hard_vocab_limit=False,
    )
    return sentencepiece_model.ModelProto.FromString(model.getvalue())


def codes(text):
    return " ".join(f"{ord(letter):X}" for letter in text)


def t5(**options):
    """T5: SentencePiece's unigram pieces; pad 0, end 1, unknown 2, sentinels last."""
    with tempfile.TemporaryDirectory() as folder:
        model = sentencepiece_unigram(folder, 220)
    vocab = [(piece.piece, round(piece.score, 6)) for piece in model.pieces]
    vocab += [(f"<extra_id_{index}>", 0.0) for index in (2, 1, 0)]
    return T5Tokenizer(
        vocab=vocab, extra_ids=3, _spm_precompiled_charsmap=model.normalizer_spec.precompiled_charsmap, **options
    )


def save(tokenizer, path):
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        with open(f"{folder}/tokenizer.json") as file:
            path.write_text(json.dumps(json.load(file), indent=1, ensure_ascii=False) + "\n")


def write(variant, tokenizer, texts):
    case = Case("tokenizer", variant, texts=texts)
    save(tokenizer, case.path("tokenizer.json"))
    read = Tokenizer.from_file(str(case.path("tokenizer.json")))
    for index, text in enumerate(texts):
        ids = tokenizer(text).input_ids
        assert read.encode(text).ids == ids, "the file says the same as the class"
        case.outputs({f"ids.{index}": ids})
    case.save()


def make():
    write("clip", clip(), TEXTS)
    write("t5", t5(), [*TEXTS, "<extra_id_0> the ５ stars <extra_id_2>.</s>", ""])
    chat = "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>Rate it.<|im_end|>\n"
    write("qwen", qwen(), [*TEXTS, chat])
