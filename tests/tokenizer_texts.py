"""Texts that a tokenizer is tested with, and the expressions of known pre-tokenizers."""
import random
import unicodedata

from conftest import DATA, ROOT

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# The rows of Splits of DeepSeek-V3, and (its list of letters cut short) of DeepSeek-LLM and -Coder.
DEEPSEEK_V3 = [
    r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
]
DEEPSEEK_LLM = [
    r"[\r\n]", r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓͰ-ͳͶͷΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-Ֆℂℇℊ-ℓﬀ-ﬆＡ-Ｚａ-ｚ𐐀-𐑏𞤀-𞥃]+",
    r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", "[一-龥\u0800-一가-\ud7ff]+"
]

SCRIPTS = {
    "latin": "The quick brown fox déjà vu naïve Straße łódź œuvre don't WE'LL it's I'M they'Re ſ'ſ",
    "cyrillic": "Съешь же ещё этих мягких французских булок да выпей чаю Ґанок Ђорђе",
    "greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία ἀρχὴ ᾧ ὕδωρ",
    "hebrew": "דג סקרן שט בים מאוכזב ולפתע מצא חברה שָׁלוֹם",
    "arabic": "نص حكيم له سر قاطع وذو شأن عظيم مَرْحَبًا ۱۲۳ ٤٥٦",
    "devanagari": "ऋषियों को सताने वाले दुष्ट राक्षसों १२३ हिन्दी क़ख़",
    "thai": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า ๑๒๓ น้ำ",
    "chinese": "天地玄黃宇宙洪荒 我能吞下玻璃而不伤身体 一二三 𠀋𪚥",
    "japanese": "いろはにほへと ちりぬるを カタカナ ガギグ 漢字仮名交じり文 ①②③ ﾊﾟ",
    "korean": "키스의 고유조건은 입술끼리 만나야 하고 각 가",
    "tamil": "யாமறிந்த மொழிகளிலே தமிழ்மொழி போல் இனிதாவது ௧௨௩ கொ",
    "vietnamese": "Tiếng Việt có thanh điệu ngã hỏi nặng ế ử ợ",
}
EMOJI = [
    "😀", "👩‍👩‍👧‍👦", "👍🏽", "🇩🇪", "❤️", "🏳️‍🌈", "1️⃣", "🫠", "©", "™", "½", "²", "Ⅻ", "㊿", "ﬁ", "Å",
    "Å", "Ω", "ΰ",
]
SPACES = [
    " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\t\t", "\u00a0", "\u3000", "\u2028", "\u200b",
    "\u0085", "\v", " \n ", "\u180e",
]
SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>", "<repo_name>",
    "<|im_", "<|", "<s>", "</s>", "<unk>", "[INST]", "<mask>", "<0x41>", "▁", "▁▁a",
    "<｜begin▁of▁sentence｜>", "<｜User｜>",
]


def assigned():
    """Code points assigned in Unicode 13; without private use, which would crowd out the rest."""
    lines = (DATA / "unicode13_assigned.txt").read_text().splitlines()
    ranges = [[int(x, 16) for x in line.split()] for line in lines if not line.startswith("#")]
    return [
        c for first, last in ranges for c in range(first, last + 1)
        if unicodedata.category(chr(c)) != "Co"
    ]


def source_lines():
    files = sorted((ROOT / "src").rglob("*.[ch]")) + sorted((ROOT / "tests").rglob("*.py"))
    return [
        line for f in files for line in f.read_text(encoding="utf-8").splitlines() if line.strip()
    ]


def make_texts(count, seed):
    """`count` texts: words, code, emoji, white space, special tokens, any code points."""
    rng = random.Random(seed)
    codes = assigned()
    words = {name: text.split() for name, text in SCRIPTS.items()}
    every = [w for ws in words.values() for w in ws]
    lines = source_lines()
    marks = [c for c in codes if unicodedata.combining(chr(c))]
    makers = [
        lambda: rng.choice(SPACES[:6]).join(
            rng.choices(words[rng.choice(list(words))], k=rng.randint(1, 12))),
        lambda: "".join(w + rng.choice(SPACES + [""])
                        for w in rng.choices(every, k=rng.randint(1, 8))),
        lambda: unicodedata.normalize(rng.choice(["NFD", "NFKD", "NFC"]), " ".join(
            rng.choices(every, k=6))), lambda: "\n".join(lines[i:i + 3])
        if (i := rng.randrange(len(lines))) >= 0 else "",
        lambda: "".join(rng.choices(EMOJI + SPACES + ["a", "Z", "7"], k=rng.randint(1, 10))),
        lambda: "".join(map(chr, rng.choices(codes, k=rng.randint(1, 20)))), lambda: "".join(
            rng.choice("ab é") + "".join(map(chr, rng.choices(marks, k=rng.randint(0, 4))))
            for _ in range(rng.randint(1, 6))), lambda: "".join(
                rng.choices(SPACES, k=rng.randint(1, 12))) + rng.choice(["", "x", "1", "."]),
        lambda: "".join(rng.choices(SPECIALS + every + SPACES, k=rng.randint(2, 9))),
        lambda: rng.choice(["", " ", "-", "x"]).join(
            str(rng.randrange(10**rng.randint(1, 12))) for _ in range(5)),
        lambda: "".join(rng.choices("'’sSſtTreRvVeEmMlLdD kK\u212a 1.\n", k=rng.randint(1, 16))),
        lambda: rng.choice("aAé 1.=-\n漢") * rng.randint(1, 400),
    ]
    return [makers[i % len(makers)]() for i in range(count)]
