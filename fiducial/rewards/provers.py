"""Proofs checked by programs: Coq and Metamath. Runs in a worker process, which is killed with all it started; in
bubblewrap where that works.

What is asked is compiled apart from what was answered, so that an answer that redefines the words of the statement, or
its notations, proves something else and does not check. An answer is text of others: what would write files or run code
is refused before Coq sees it.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

Verdict = tuple[str, str]

MEMORY = 2 << 20  # KiB of address space
FILE_LIMIT = 64 << 11  # blocks of 512 bytes: 64 MiB


@functools.cache
def box() -> list[str]:
    """What a prover's command follows where bubblewrap works: nothing can be written but its folder, and no network."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return []
    inside = [bwrap, "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/"]
    inside += ["--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
    return inside if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode == 0 else []


def run(command: Sequence[str], folder: str, deadline: float) -> tuple[int, str, str]:
    """Exit code, output and errors of a program in a folder, within limits of memory, file size and time."""
    seconds = max(deadline - time.monotonic(), 0.01)
    limits = f"ulimit -v {MEMORY} -f {FILE_LIMIT} -t {int(seconds) + 1} -c 0"
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": folder, "LC_ALL": "C.UTF-8"}
    boxed = [*box(), "--bind", folder, folder, "--chdir", folder, "--"] if box() else []
    done = subprocess.run(
        [*boxed, "/bin/sh", "-c", f'{limits}; exec "$@"', "sh", *command],
        cwd=folder, env=environment, check=False, timeout=seconds, stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


# --------------------------------------------------------------------------- Coq

_HEAD = re.compile(
    r"\s*(?:Theorem|Lemma|Fact|Remark|Corollary|Proposition|Property|Example|Goal)\s+(?P<rest>.*)", re.DOTALL
)
_PLACEHOLDER = re.compile(r"\b(Admitted|admit|Abort|give_up|sorry)\b")
_ASSUMES = re.compile(r"\b(Axioms?|Parameters?|Conjectures?|Hypothes[ie]s|bypass_check|Admit\s+Obligations)\b")
_REFUSED = re.compile(
    r"\b(Redirect|Extraction|Extract|Load|Cd|Drop|Quit|Restore|Write|Dump|Declare\s+ML|LoadPath|ML\s+Path"
    r"|Unset\s+Guard|Unset\s+Positivity|Unset\s+Universe|Guard\s+Checking|Positivity\s+Checking|Universe\s+Checking"
    r"|native_compute)\b"
)


def coq(statement: str, proof: str, header: str, axioms: Sequence[str], deadline: float) -> Verdict:
    """(verdict, why) of a Coq proof of `statement` ("Theorem name : type." or the type alone).

    `header` are the trusted commands before it (Require, definitions); `axioms` those that the proof may use. The proof
    is a script, or a development with helper lemmas that proves a theorem of the name.
    """
    if shutil.which("coqc") is None:
        return "skipped", "Coq is not installed: there is no coqc"
    name, asked = coq_statement(statement)
    own = strip_coq(proof)
    if not own.strip():
        return "unparseable", "the completion holds no proof"
    if found := _PLACEHOLDER.search(own):
        return "wrong", f"a placeholder in the proof: {found[1]}"
    if found := _ASSUMES.search(own):
        return "wrong", f"the proof assumes what it should prove: {found[1]}"
    if found := _REFUSED.search(own):
        return "wrong", f"the command {found[1]} is not allowed in a proof"
    if not re.search(
        rf"\b(?:Theorem|Lemma|Fact|Remark|Corollary|Proposition|Property|Example|Definition)\s+{re.escape(name)}(?![\w'])",
        own,
    ):
        proof = coq_script(name, asked, proof, own)
    checking = f"Definition checked : Fiducial.Asked.asked := Fiducial.Given.{name}.\nPrint Assumptions checked.\n"
    files = {
        "Asked": f"{header}\nDefinition asked := ({asked}).\n",
        "Given": f"{header}\n{proof}\n",
        "Check": f"Require Fiducial.Asked Fiducial.Given.\n{checking}",
    }
    out = ""
    with tempfile.TemporaryDirectory() as folder:
        for file, text in files.items():
            Path(folder, f"{file}.v").write_text(text, encoding="utf-8", errors="replace")
            code, out, errors = run(["coqc", "-q", "-w", "none", "-Q", ".", "Fiducial", f"{file}.v"], folder, deadline)
            if code:
                trouble = {"Asked": "the statement is not accepted", "Given": "the proof is not accepted"}
                what = trouble.get(file, f"the theorem {name} is not the one that was asked for")
                return ("skipped" if file == "Asked" else "wrong"), f"{what}: {first_error(errors)}"
    return assumptions(out, axioms)


def coq_statement(statement: str) -> tuple[str, str]:
    """Name and type of a statement; binders before the colon become a `forall`.

    >>> coq_statement("Theorem add_0 (n : nat) : n + 0 = n.")
    ('add_0', 'forall (n : nat), n + 0 = n')
    >>> coq_statement("1 = 1")
    ('asked_for', '1 = 1')
    """
    text = re.sub(r"\.\s*(?:Proof\.?)?\s*$", "", statement.strip())
    head = _HEAD.fullmatch(text)
    if head is None:
        return "asked_for", text
    rest, depth = head["rest"], 0
    for place, sign in enumerate(rest):
        depth += (sign in "([{") - (sign in ")]}")
        if sign == ":" and depth == 0 and rest[place : place + 2] != ":=":
            name, _, binders = rest[:place].strip().partition(" ")
            kind = rest[place + 1 :].strip()
            return name, f"forall {binders.strip()}, {kind}" if binders.strip() else kind
    return "asked_for", rest


def coq_script(name: str, asked: str, proof: str, own: str) -> str:
    """A script of tactics as the proof of a theorem of this name."""
    body = re.sub(r"^\s*Proof\b[^.]*\.", "", proof, count=1)
    closed = re.search(r"\b(?:Qed|Defined)\s*\.\s*$", own)
    return f"Theorem {name} : {asked}.\nProof.\n{body}\n{'' if closed else 'Qed.'}"


def strip_coq(text: str) -> str:
    """The text without comments, which nest, and without strings."""
    out, depth, place = [], 0, 0
    for match in re.finditer(r'\(\*|\*\)|"(?:[^"]|"")*"?', text):
        if depth == 0:
            out.append(text[place : match.start()])
        depth = depth + 1 if match[0] == "(*" else max(depth - 1, 0) if match[0] == "*)" else depth
        place = match.end()
    return " ".join([*out, text[place:]] if depth == 0 else out)


def first_error(output: str) -> str:
    """What Coq says is wrong, in a line."""
    _, found, after = output.partition("Error:")
    return " ".join((after if found else output).split())[:160]


def assumptions(output: str, allowed: Sequence[str]) -> Verdict:
    """The verdict by what `Print Assumptions` said."""
    if "Closed under the global context" in output:
        return "correct", "Coq accepts the proof, without axioms"
    used = re.findall(r"^([\w.']+)\s*(?::|$)", output, re.MULTILINE)
    used = [name for name in used if name != "Axioms"]
    extra = [name for name in used if not {name, name.split(".")[-1]} & set(allowed)]
    trusted = "relies on" in output or "assumed" in output or not used
    if extra or trusted:
        return "wrong", f"the proof rests on {', '.join(extra) or ' '.join(output.split())[:120]}"
    return "correct", f"Coq accepts the proof, with {', '.join(used)}"


# --------------------------------------------------------------------------- Metamath


_CLAIM = re.compile(
    r"(?P<before>.*?)(?P<label>[\w.-]+)\s+\$p\s+(?P<claim>[^$]+?)\s*(?:\$[.=].*)?(?:\$\}\s*)*", re.DOTALL
)


def metamath(statement: str, proof: str, database: str, deadline: float) -> Verdict:
    """(verdict, why) of a Metamath proof: labels, or a compressed proof, of the `$p` statement after a database.

    `statement` is "label $p |- ...", in a block of its own where it has hypotheses: "${ h $e |- p $. label $p |- q $}".
    """
    if shutil.which("metamath") is None:
        return "skipped", "Metamath is not installed: there is no metamath"
    head = _CLAIM.fullmatch(statement.strip())
    if head is None:
        return "skipped", "the statement must read 'label $p |- ...'"
    tokens = re.sub(r"\$=|\$\.\s*$", " ", proof).split()
    if not tokens:
        return "unparseable", "the completion holds no proof"
    if any("?" in token for token in tokens):
        return "wrong", "a placeholder in the proof: ?"
    bad = next((token for token in tokens if not re.fullmatch(r"[A-Za-z0-9._-]+|[()]", token)), None)
    if bad:
        return "wrong", f"{bad[:40]!r} is no label of a proof"
    before, label = head["before"], head["label"]
    closing = "$}" * (before.count("${") - before.count("$}"))
    text = f"{database}\n{before}{label} $p {head['claim']} $= {' '.join(tokens)} $. {closing}\n"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "asked.mm").write_text(text, encoding="ascii", errors="replace")
        command = ["metamath", 'read "asked.mm"', f"verify proof {label}", "exit"]
        _, out, _ = run(command, folder, deadline)
    read, _, verified = out.partition(f"MM> verify proof {label}")
    if "No errors were found" not in read:
        return "skipped", f"the database or the statement is not accepted: {_first_question(read)}"
    said = verified.rpartition("MM> exit")[0].strip()
    if said == label:
        return "correct", "Metamath accepts the proof"
    return "wrong", f"Metamath: {_first_question(said)}"


def _first_question(output: str) -> str:
    """What Metamath complains of; it marks that by a question mark, and quotes the line."""
    told = [line for line in output.splitlines() if line.strip() and not line.startswith("MM>")]
    reason = [line for line in told if not line.startswith("?Error on line")] or told
    return " ".join(" ".join(reason).split())[-160:]


def prove(system: str, statement: str, proof: str, extras: dict, seconds: float) -> Verdict:
    """What a worker runs: the check of one proof by its system, within so many seconds."""
    try:
        checker = {"coq": coq, "metamath": metamath}[system]
        return checker(statement, proof, deadline=time.monotonic() + seconds, **extras)
    except subprocess.TimeoutExpired:
        return "timeout", f"the prover took more than {seconds:g} s"
