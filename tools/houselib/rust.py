"""As much of Rust as it takes to say which module names which: tokens, modules, paths, macros."""

import collections
import re

# Text that is no code, or looks like a delimiter and is none. A lifetime is no character: it has no quote at its end.
NOT_CODE = re.compile(
    r"""
      (?P<line>//[^\n]*)
    | (?P<block>/\*)
    | (?P<raw>\b(?:b|c|br|cr|r)(?P<hashes>\#*)"(?:(?<=r")|(?<=\#")).*?"(?P=hashes))
    | (?P<text>(?:\b[bc])?"(?:\\.|[^"\\])*")
    | (?P<char>\bb?'(?:\\(?:x..|u\{[^}]*\}|.)|[^'\\\n])'|'(?:\\(?:x..|u\{[^}]*\}|.)|[^'\\\n])')
    """,
    re.VERBOSE | re.DOTALL,
)
TOKEN = re.compile(r"\w+|::|\S")
ITEMS = set("async const enum extern fn impl let macro_rules mod pub static struct trait type union unsafe use".split())

Place = collections.namedtuple("Place", "file line text")
Token = collections.namedtuple("Token", "text at")


def blank(text, strings=True):
    """The same text with comments, and strings and characters, replaced by spaces, line by line."""
    out, at = [], 0
    while match := NOT_CODE.search(text, at):
        end = end_of_comment(text, match.start()) if match["block"] else match.end()
        goes = strings or match["line"] or match["block"]
        found = text[match.start() : end]
        out += [text[at : match.start()], re.sub(r"[^\n]", " ", found) if goes else found]
        at = end
    return "".join(out) + text[at:]


def end_of_comment(text, start):
    """Block comments nest."""
    depth = 0
    for mark in re.finditer(r"/\*|\*/", text[start:]):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return start + mark.end()
    return len(text)


def comments_and_code(text):
    """How many lines have a comment and nothing else, and how many have code."""
    code = sum(bool(line.strip()) for line in blank(text, strings=False).splitlines())
    return sum(bool(line.strip()) for line in text.splitlines()) - code, code


def substance(text):
    """The lines that could be repeated, with their numbers: no blank ones, comments, imports, attributes or lone punctuation."""
    lines = (" ".join(line.split()) for line in blank(text, strings=False).splitlines())
    dull = re.compile(r"\W*$|(pub(\(.*?\))? )?use\b|#!?\[")
    return [(number, line) for number, line in enumerate(lines, 1) if not dull.match(line)]


def is_test(predicate):
    """Is this `cfg` predicate, a list of tokens, true in builds for tests or for the model only?"""
    if predicate[:1] in (["all"], ["any"]) and predicate[1:2] == ["("]:
        parts = [is_test(part) for part in split(predicate[2:-1])]
        return any(parts) if predicate[0] == "all" else bool(parts) and all(parts)
    return predicate in (["test"], ["revocable_model"], ["doctest"])


def split(tokens):
    """A list of tokens, divided at its outermost commas."""
    parts, depth = [[]], 0
    for token in tokens:
        depth += (token in "([{") - (token in ")]}")
        if token == "," and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in parts if part]


class File:
    """One source file: the paths that it names, the modules that it declares for tests only, and its macros."""

    def __init__(self, name, text, module):
        self.name, self.module = name, module
        self.raw = text.splitlines()
        code = blank(text)
        self.tokens = [Token(match[0], match.start()) for match in TOKEN.finditer(code)]
        self.line_starts = [0] + [match.end() for match in re.finditer("\n", code)]
        self.named = []  # (absolute path, its place)
        self.invoked = []  # (name of a macro, its place)
        self.macros = set()
        self.test_modules = set()
        self.root_names = {}  # what the root of the crate re-exports: name -> path
        self.walk()

    def place(self, token):
        line = line_of(self.line_starts, token.at)
        return Place(self.name, line, self.raw[line - 1].strip())

    def text(self, at):
        return self.tokens[at].text if 0 <= at < len(self.tokens) else ""

    def walk(self):
        at, depth, inline = 0, 0, []  # inline: (name, depth of its body)
        while at < len(self.tokens):
            text = self.text(at)
            if text == "#" and self.text(at + 1) in ("[", "!"):
                at = self.attribute(at, inline)
                continue
            if text == "{":
                depth += 1
            elif text == "}":
                depth -= 1
                while inline and inline[-1][1] > depth:
                    inline.pop()
            elif text == "mod" and self.text(at + 2) == "{":
                inline.append((self.text(at + 1), depth + 1))
            elif text == "macro_rules" and self.text(at + 1) == "!":
                self.macros.add(self.text(at + 2))
            elif text == "!" and self.text(at + 1) in ("(", "[", "{") and self.text(at - 1).isidentifier():
                self.invoked.append((self.text(at - 1), self.place(self.tokens[at - 1])))
            elif text == "use" or (text == "pub" and self.text(at + 1) == "use"):
                at = self.use(at + (text == "pub") + 1, inline, text == "pub")
                continue
            elif text == "pub" and self.text(at + 1) == "(" and self.text(at + 2) == "in":
                at += self.tokens_to(at + 1)  # the path of a visibility is no use of anything
                continue
            elif text in ("crate", "super", "self") and self.text(at + 1) == "::" and self.text(at - 1) != "::":
                at = self.tree(at, [], inline)
                continue
            at += 1

    def use(self, at, inline, exported):
        """An import. A path that begins with a name counts in the root only: there it is a module's."""
        in_root = not self.module and not inline
        if self.text(at) in ("crate", "super", "self") or in_root:
            return self.tree(at, [], inline, importing=True, root=in_root and exported)
        return at

    def tree(self, at, prefix, inline, importing=False, root=False):
        """The paths of a use-tree, or the one path of other code. Returns where it ends."""
        path, first = list(prefix), self.tokens[at]
        while True:
            text = self.text(at)
            if text == "{":
                at += 1
                while self.text(at) not in ("}", ""):
                    at = self.tree(at, path, inline, importing, root)
                    at += self.text(at) == ","
                return at + 1
            if not (text == "*" or re.match(r"\w+$", text)):
                break
            path.append(text)
            at += 1
            if self.text(at) != "::":
                break
            at += 1
            if self.text(at) == "<":
                break
        name = path[-1] if path else ""
        if importing and self.text(at) == "as" and re.match(r"\w+$", self.text(at + 1)):
            name = self.text(at + 1)
            at += 2
        if root:
            self.root_names[name] = path
        elif absolute := self.absolute(path, inline):
            self.named.append((absolute, self.place(first)))
        return max(at, 1)

    def absolute(self, path, inline):
        here = list(self.module) + [name for name, _ in inline]
        if path[:1] == ["crate"]:
            return path[1:]
        if path[:1] == ["self"]:
            return here + path[1:]
        while path[:1] == ["super"]:
            here, path = here[:-1], path[1:]
        return here + path

    def attribute(self, at, inline):
        """Passes over an attribute, and over the item after it if that is for tests only."""
        inner = self.text(at + 1) == "!"
        start = at + 1 + inner
        end = start + self.tokens_to(start)
        words = [token.text for token in self.tokens[start + 1 : end - 1]]
        if words[:2] != ["cfg", "("] or not is_test(words[2:-1]):
            return end
        if inner:
            return len(self.tokens)
        # More attributes of the same item.
        while self.text(end) == "#":
            end += 1 + self.tokens_to(end + 1)
        return self.item(end, inline)

    def item(self, at, inline):
        """Where the item, statement, field or arm that begins here ends."""
        start, depth = at, 0
        begins = self.text(at)
        words = [token.text for token in self.tokens[at : at + 6]]
        if "mod" in words and self.text(at + words.index("mod") + 2) == ";":
            name = self.text(at + words.index("mod") + 1)
            self.test_modules.add(tuple(list(self.module) + [outer for outer, _ in inline] + [name]))
        importing = "use" in words[: 1 + 4 * (begins == "pub")]
        while at < len(self.tokens):
            text = self.text(at)
            if text in ("(", "[", "{"):
                depth += 1
            elif text in (")", "]", "}"):
                if depth == 0:
                    return at
                depth -= 1
                if depth == 0 and text == "}" and not importing:
                    return at + 1
            elif depth == 0 and (text == ";" or text == "," and begins not in ITEMS):
                return at + 1
            at += 1
        return max(at, start + 1)

    def tokens_to(self, at):
        """How many tokens there are from an opening delimiter to its end, both included."""
        depth = 0
        for number, token in enumerate(self.tokens[at:]):
            depth += (token.text in "([{") - (token.text in ")]}")
            if depth == 0:
                return number + 1
        return len(self.tokens) - at


def line_of(starts, at):
    low, high = 0, len(starts)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if starts[middle] <= at else (low, middle)
    return low + 1


class Crate:
    """The modules of the top level with their lines, every module's path, and the arrows with the places of their uses."""

    def __init__(self, files):
        parsed = [File(name, text, module_of(name)) for name, text in files.items()]
        tests = {module for file in parsed for module in file.test_modules}
        shipped = [file for file in parsed if not any(file.module[: len(test)] == test for test in tests)]
        self.paths = {file.module for file in shipped if file.module}
        self.modules, self.inside = {}, collections.defaultdict(set)
        for file in shipped:
            if file.module:
                self.modules[file.module[0]] = self.modules.get(file.module[0], 0) + len(file.raw)
                self.inside[file.module[0]].update(file.module[1:2])
        self.macros = {macro: file.module[0] for file in shipped if file.module for macro in file.macros}
        roots = [file.root_names for file in shipped if not file.module]
        self.exports = {name: path for names in roots for name, path in names.items() if name not in self.modules}
        self.inner = collections.defaultdict(set)  # by module: the arrows between its own modules
        self.arrows = self.find_arrows(shipped)

    def find_arrows(self, files):
        arrows = collections.defaultdict(list)
        for file in files:
            if not file.module:
                continue
            own = file.module[0]
            for path, place in file.named:
                target = self.home(path)
                if target and target != own:
                    arrows[own, target].append(place)
                elif target and len(file.module) > 1 and path[1:2] and path[1] in self.inside[own] - {file.module[1]}:
                    self.inner[own].add((file.module[1], path[1]))
            for macro, place in file.invoked:
                target = self.macros.get(macro)
                if target and target != own and macro not in file.macros:
                    arrows[own, target].append(place)
        return dict(arrows)

    def home(self, path):
        """The module that a path of the crate is in. A re-export of the root is in the module that it comes from."""
        for _ in range(2):
            if path and path[0] in self.modules:
                return path[0]
            path = self.exports.get(path[0] if path else "")
            if path and path[0] in ("crate", "self"):
                path = path[1:]
        return None


def module_of(name):
    """src/a/b.rs and src/a/b/mod.rs are the module a::b, src/lib.rs is the root."""
    parts = name.removesuffix(".rs").split("/")[1:]
    if parts[-1] in ("lib", "mod"):
        parts.pop()
    return tuple(parts)
