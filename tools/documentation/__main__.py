"""Build the documentation site: no network, no warnings, all links and snippets checked.

usage: PYTHONPATH=tools python -m documentation             the site, in build/site
       PYTHONPATH=tools python -m documentation snippets    only the code blocks of README.md and docs
       PYTHONPATH=tools python -m documentation --draft     the site without executing notebooks and snippets
"""

from __future__ import annotations

import subprocess
import sys
import time

from documentation import site, snippets

USAGE = (__doc__ or "").split("usage: ")[1]


def main(words: list[str]) -> int:
    """Run one of the commands of the usage.

    Args:
        words: The words after the module's name.
    """
    begun = time.monotonic()
    if words not in ([], ["--draft"], ["snippets"]):
        print(USAGE, file=sys.stderr)
        return 2
    problems = []
    if words == ["snippets"] or sys.version_info < (3, 11):
        problems = snippets.run_all()
        if words != ["snippets"]:
            print("the site's generator needs Python 3.11; the code blocks ran, the site was not built")
    else:
        # Beside the notebooks, in a process of their own: they change its working folder.
        code_blocks = subprocess.Popen([sys.executable, "-m", "documentation", "snippets"]) if not words else None
        problems = site.build(draft=words == ["--draft"])
        if code_blocks is not None and code_blocks.wait():
            problems.append("code blocks failed, see above")
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(problems)} problems, {time.monotonic() - begun:.0f} s", flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
