"""Put what the benchmarks printed into the pages that show it: after each line `<!-- benchmarks/results/NAME.txt -->`.

python benchmarks/pages.py
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(?<=<!-- )(benchmarks/results/\w+\.txt)( -->\n```text\n).*?(?=```\n)", re.DOTALL)


def main():
    """Replace the blocks."""
    for page in (ROOT / "docs").rglob("*.md"):
        text = page.read_text()
        shown = BLOCK.sub(lambda block: block[1] + block[2] + (ROOT / block[1]).read_text(), text)
        if shown != text:
            page.write_text(shown)
            print("written: %s" % page.relative_to(ROOT))


if __name__ == "__main__":
    main()
