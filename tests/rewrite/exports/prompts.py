"""Passkey prompts of the small LLaMA as token ids, with the answers it must give; tests.rewrite.exports.make writes
them."""

import json
import random
from pathlib import Path

from .build import BUNDLED, GRAPHS

FILE = Path(__file__).parent / "prompts.json"
# Three names a prompt, and about so many tokens.
LENGTHS = (300, 600, 600, 600, 900, 1200)
NAMES = (
    "amber birch cedar delta ember flint grove haven ivory jade "
    "karst lotus maple north olive pearl quartz raven slate tulip"
)

# Text of the kind that the model was trained on.
FILLER = """
A vector keeps its elements next to each other in memory and grows when it has no room for one more.
Calling this function on an empty slice returns `None`, since there is nothing to compare.
The iterator borrows the collection, so the collection cannot be changed until the iterator is dropped.
If the value is an error, the operator returns it early from the function that surrounds it.
This method takes ownership of the string and gives back the bytes that it was made of.
A trait describes what a type can do, and a type may implement as many of them as it needs.
Use a reference when the callee only has to look at the value and does not have to keep it.
The compiler checks at every call that the lifetime of the result is no longer than that of the argument.
Note that the order of the entries is not specified and may differ from one run to the next.
When the last handle goes out of scope, the file is closed and errors on closing are ignored.
The closure is called once for each element, in order, and its results are collected into a new list.
Threads that wait for the lock are put to sleep, and one of them is woken when the guard is dropped.
This conversion never fails, because every value of the smaller type fits into the larger one.
A macro is expanded before types are checked, so its errors point at the code that it produced.
The capacity of a buffer is the amount of space that it has, and the length is what is used of it.
In debug builds an overflow panics, while in release builds the result wraps around.
Modules form a tree, and a path names an item by the way that leads to it from the root.
An enumeration has exactly one of its variants at a time, and a match must handle all of them.
The sender can be cloned, so that many threads may send messages to the same receiver.
Reading past the end is not an error: the call returns zero, and the buffer stays as it was.
Two keys that compare equal must also have the same hash, or else the map will not find them.
The documentation of a public item should begin with a short line that says what it is for.
A raw pointer may be null, and following it is only allowed within an unsafe block.
Sorting is stable here, which means that equal elements keep the order in which they came.
The default implementation calls the other method, so it is enough to provide only one of them.
To run the tests of a package, type the command in the folder where its manifest lies.
A range is empty when its start is not below its end, and then the loop body does not run at all.
The function returns a pair: the part before the separator and the part that comes after it.
Generic code is compiled anew for every type that it is used with, so that calls stay fast.
Formatting writes into anything that accepts text, be it a string, a file or the screen.
""".strip().split("\n")


def text(rng, encode, length):
    """A prompt of about `length` tokens, and its answer."""
    names = rng.sample(NAMES.split(), 3)
    numbers = {name: "".join(rng.choices("0123456789", k=5)) for name in names}
    asked = rng.choice(names)
    notes = [f"\nThe secret number of {name} is {number}. Remember it.\n" for name, number in numbers.items()]
    question = f"\nWhat is the secret number of {asked}? It is"
    room = length - sum(len(encode(part)) for part in [*notes, question])
    parts = []
    while room > 0:
        for sentence in rng.sample(FILLER, len(FILLER)):
            room -= len(encode(" " + sentence))
            if room < 0:
                break
            parts.append(sentence + rng.choice([" ", " ", "\n"]))
    for note in notes:
        parts.insert(rng.randrange(len(parts) + 1), note)
    return "".join(parts) + question, f" {numbers[asked]}."


def make():
    try:
        from tokenizers import Tokenizer
    except ImportError:
        print(f"no package tokenizers: {FILE.name} stays as it is")
        return
    tokenizer = Tokenizer.from_file(str(GRAPHS / BUNDLED / "tokenizer.json"))
    rng, lines = random.Random(0), []
    for length in LENGTHS:
        prompt, answer = text(rng, lambda part: tokenizer.encode(part).ids, length)
        tokens, wanted = tokenizer.encode(prompt).ids, tokenizer.encode(answer).ids
        # What the model continues with must be what the answer is when it is alone.
        assert tokenizer.encode(prompt + answer).ids == tokens + wanted
        lines.append(json.dumps({"answer": wanted, "tokens": tokens}))
    FILE.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def load():
    """[{"tokens", "answer"}], from the shortest to the longest."""
    return json.loads(FILE.read_text())
