"""Twenty raw HellaSwag items written by hand, and what preprocessing makes of them, written out."""

from typing import Any

# activity_label, ctx_a, ctx_b, endings, label; then the expected query and choices
_ITEMS: list[tuple[str, str, str, list[str], str, str, list[str]]] = [
    (
        "Baking bread", "A woman kneads dough on a table.", "she",
        ["puts it in a bowl.", "throws it at a bird.", "paints it blue.", "reads it a letter."], "0",
        "Baking bread: A woman kneads dough on a table. She",
        ["puts it in a bowl.", "throws it at a bird.", "paints it blue.", "reads it a letter."],
    ),
    (  # capitalize lowers what follows the first letter
        "Sailing", "Two men stand on a deck.", "one of the MEN",
        ["pulls a rope.", "eats the mast.", "becomes a fish.", "sells the sea."], "0",
        "Sailing: Two men stand on a deck. One of the men",
        ["pulls a rope.", "eats the mast.", "becomes a fish.", "sells the sea."],
    ),
    (  # " [title]" becomes a full stop and a space, of which two become one
        "How to plant a tree", "[header] How to plant a tree [title] Dig a hole. [step] It should be deep.", "",
        ["Put the tree in.", "Fill it with soup.", "Call the hole.", "Sing."], "0",
        "How to plant a tree: How to plant a tree. Dig a hole. It should be deep.",
        ["Put the tree in.", "Fill it with soup.", "Call the hole.", "Sing."],
    ),
    (  # brackets in the endings
        "How to fold a shirt", "[header] How to fold a shirt [title] Lay it flat.", "smooth it",
        ["[step] Fold the arms in.", "[substeps] Do not fold it. [substeps] Burn it.", "Iron [it] twice.", "[x]Stop."], "0",
        "How to fold a shirt: How to fold a shirt. Lay it flat. Smooth it",
        [" Fold the arms in.", " Do not fold it. Burn it.", "Iron twice.", "Stop."],
    ),
    (  # the shortest bracket goes, not the longest
        "Maths", "Let [a] be one and [b] be two.", "then [c]",
        ["follows.", "[d] and [e] meet.", "nothing.", "everything."], "1",
        "Maths: Let be one and be two. Then ",
        ["follows.", " and meet.", "nothing.", "everything."],
    ),
    (  # three spaces: left to right, two become one, so two are left
        "Spacing", "One   two.", "three",
        ["four  five.", "six   seven.", "eight    nine.", "ten."], "2",
        "Spacing: One  two. Three",
        ["four five.", "six  seven.", "eight  nine.", "ten."],
    ),
    (
        "Running", "  A boy runs.", "the boy ",
        [" stops. ", "flies.", "melts.", "is a stone."], "0",
        "Running:  A boy runs. The boy",
        ["stops.", "flies.", "melts.", "is a stone."],
    ),
    (
        "Cuisine", "Un garçon prépare une crêpe.", "élève",
        ["mange la crêpe.", "vole.", "dort.", "chante à l'œuf."], "0",
        "Cuisine: Un garçon prépare une crêpe. Élève",
        ["mange la crêpe.", "vole.", "dort.", "chante à l'œuf."],
    ),
    (
        "Painting a fence", "A man opens a can. He dips a brush.", "he then",
        ["paints the fence.", "drinks the paint.", "hides.", "votes."], "0",
        "Painting a fence: A man opens a can. He dips a brush. He then",
        ["paints the fence.", "drinks the paint.", "hides.", "votes."],
    ),
    (  # a [title] at the very start has no space before it once trimmed: it is a bracket
        "Title", "[title] Begin here.", "go",
        ["[title] on.", "back [title] again.", "away.", "up."], "3",
        "Title:. Begin here. Go",
        [" on.", "back. again.", "away.", "up."],
    ),
    (
        "Surfing", "A surfer waits. A wave comes.", "the wave",
        ["lifts him.", "asks him.", "pays him.", "knows him."], "0",
        "Surfing: A surfer waits. A wave comes. The wave",
        ["lifts him.", "asks him.", "pays him.", "knows him."],
    ),
    (
        "Archery", "A woman draws a bow.", "the arrow",
        ["hits the target.", "sleeps.", "laughs.", "is cooked."], "0",
        "Archery: A woman draws a bow. The arrow",
        ["hits the target.", "sleeps.", "laughs.", "is cooked."],
    ),
    (  # an empty ctx_b leaves the space in front of it, and trimming comes before the brackets go
        "Polishing", "A man polishes a shoe.", "",
        ["He shines it.", "He eats it.", "He mails it.", "He floods it."], "0",
        "Polishing: A man polishes a shoe.",
        ["He shines it.", "He eats it.", "He mails it.", "He floods it."],
    ),
    (  # a bracket without its end stays
        "Chess", "White moves [e4.", "black",
        ["answers.", "leaves the [board.", "sings]", "is white."], "0",
        "Chess: White moves [e4. Black",
        ["answers.", "leaves the [board.", "sings]", "is white."],
    ),
    (
        "Numbers", "3 people stand.", "4 more",
        ["join them.", "are 5.", "count 6.", "are 7."], "0",
        "Numbers: 3 people stand. 4 more",
        ["join them.", "are 5.", "count 6.", "are 7."],
    ),
    (  # a bracket over a line's end stays: the dot of the pattern does not match it
        "Poem", "Lines [of\na poem] end.", "they",
        ["rhyme.", "break\nhere.", "[do\nnot] go.", "stay."], "1",
        "Poem: Lines [of\na poem] end. They",
        ["rhyme.", "break\nhere.", "[do\nnot] go.", "stay."],
    ),
    (
        "日本", "犬が走る。", "猫",
        ["も走る。", "が飛ぶ。", "を食べる。", "は石だ。"], "0",
        "日本: 犬が走る。 猫",
        ["も走る。", "が飛ぶ。", "を食べる。", "は石だ。"],
    ),
    (
        "Two titles", "Wash it [title] Dry it [title] Wear it.", "it is",
        ["clean [title] and dry.", "wet.", "[title]", "gone."], "0",
        "Two titles: Wash it. Dry it. Wear it. It is",
        ["clean. and dry.", "wet.", "", "gone."],
    ),
    (
        "Juggling", "A clown holds three balls.", "he tosses them",
        ["up in turn.", "to the moon.", "a coin.", "into debt."], "0",
        "Juggling: A clown holds three balls. He tosses them",
        ["up in turn.", "to the moon.", "a coin.", "into debt."],
    ),
    (
        "Last one", "The end is near.", "it is",
        ["here.", "there.", "nowhere.", "everywhere."], "3",
        "Last one: The end is near. It is",
        ["here.", "there.", "nowhere.", "everywhere."],
    ),
]  # fmt: skip
RAW: list[dict[str, Any]] = [
    {"activity_label": label, "ctx_a": a, "ctx_b": b, "endings": endings, "label": gold, "ind": number, "split": "val"}
    for number, (label, a, b, endings, gold, _, _) in enumerate(_ITEMS)
]
QUERIES = [item[5] for item in _ITEMS]
CHOICES = [item[6] for item in _ITEMS]
