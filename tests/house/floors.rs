//! Folders are floors. A file in `src/` imports from lower floors only (`floors.txt`), and from the module that a name
//! lives in. No two files of a folder import from each other, directly or through others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const TABLE: &str = include_str!("../floors.txt");

/// A path that a file names: its segments from `crate` or `super` on, and the line.
#[derive(Debug, PartialEq, Eq)]
struct Import {
    path: Vec<String>,
    line: usize,
}

/// The rows of the table for the crate (`""`) or for one folder: each name's floor.
fn floors(folder: &str) -> BTreeMap<&'static str, usize> {
    let rows = TABLE.lines().filter_map(|line| line.split('#').next()).filter(|line| !line.trim().is_empty());
    let rows = rows.filter_map(|line| match (line.split_once(": "), folder) {
        (None, "") => Some(line),
        (Some((of, names)), folder) if of == folder => Some(names),
        _ => None,
    });
    rows.enumerate().flat_map(|(floor, names)| names.split_whitespace().map(move |name| (name, floor))).collect()
}

/// The text with comments and the insides of strings blanked out: lines stay where they are.
fn code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(inside) = rest.strip_prefix('"') {
            let mut escaped = false;
            let end = inside.find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("'\"'") {
            3
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        code.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
        rest = &rest[skipped..];
    }
    code
}

/// Every path of the code that begins with `crate::` or `super::`. Each branch of a `use` tree is a path.
fn imports(text: &str) -> Vec<Import> {
    let code = code(text);
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':' && c != '$') {
                branch(&code, at, &mut Vec::new(), &mut found);
            }
        }
    }
    found
}

/// Reads one branch of a path or of a `use` tree, and returns where it ends.
fn branch(code: &str, from: usize, path: &mut Vec<String>, found: &mut Vec<Import>) -> usize {
    let depth = path.len();
    let mut at = from + code[from..].len() - code[from..].trim_start().len();
    let line = code[..at].matches('\n').count() + 1;
    loop {
        at += code[at..].len() - code[at..].trim_start().len();
        let rest = &code[at..];
        let name = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        if name > 0 {
            path.push(rest[..name].to_owned());
            at += name;
            if code[at..].starts_with("::") {
                at += 2;
                continue;
            }
        } else if rest.starts_with('{') {
            at += 1;
            loop {
                at = branch(code, at, path, found);
                at += code[at..].len() - code[at..].trim_start().len();
                let next = code[at..].chars().next();
                at += next.map_or(0, char::len_utf8);
                if next != Some(',') {
                    break;
                }
            }
            path.truncate(depth);
            return at;
        }
        break;
    }
    if path.len() > 1 {
        found.push(Import { path: path.clone(), line });
    }
    path.truncate(depth);
    // The rest of a branch (`as other`) is skipped.
    at + code[at..].find([',', '}', ';', ')', '(', '<', '\n']).unwrap_or(0)
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        match entry.path() {
            path if path.is_dir() => sources(&path, into),
            path if path.extension().is_some_and(|extension| extension == "rs") => into.push(path),
            _ => {}
        }
    }
}

/// The names that a module re-exports from modules inside of it, each with its path there.
fn handed_on(text: &str) -> BTreeMap<String, Vec<String>> {
    let code = code(text);
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        branch(&code, at + 4, &mut Vec::new(), &mut found);
    }
    let inside = found.into_iter().map(|import| import.path).filter(|path| path[0] != "crate" && path[0] != "super");
    let inside = inside.map(|path| if path[0] == "self" { path[1..].to_vec() } else { path });
    inside.filter_map(|path| Some((path.last()?.clone(), path))).filter(|(_, path)| path.len() > 1).collect()
}

/// The place of a file: `["pci", "bar"]` for src/pci/bar.rs.
fn place(root: &Path, file: &Path) -> Vec<String> {
    let inside = file.strip_prefix(root).expect("a file of src").with_extension("");
    inside.iter().map(|part| part.to_string_lossy().into_owned()).collect()
}

/// The place that an import of a file names.
fn target(place: &[String], import: &Import) -> Vec<String> {
    let ups = import.path.iter().take_while(|segment| *segment == "super").count();
    match ups {
        0 => import.path[1..].to_vec(),
        // A path may end in a module inside of the file itself. Then it names that file.
        ups => place[..place.len().saturating_sub(ups)].iter().chain(&import.path[ups..]).cloned().collect(),
    }
}

/// The file in which a path ends, after re-exports.
fn resolved(target: &[String], handed_on: &BTreeMap<Vec<String>, BTreeMap<String, Vec<String>>>) -> Vec<String> {
    let mut place: Vec<String> = Vec::new();
    let mut rest: Vec<String> = target.to_vec();
    // Each step goes one module deeper, so the number of steps is small.
    while let Some(name) = rest.first().cloned() {
        let inside: Vec<_> = place.iter().cloned().chain([name.clone()]).collect();
        match handed_on.get(&place).and_then(|names| names.get(&name)) {
            _ if handed_on.contains_key(&inside) => {
                rest.remove(0);
                place = inside;
            }
            Some(path) if path[0] != name => rest.splice(..1, path.iter().cloned()).for_each(drop),
            _ => break,
        }
    }
    if place.is_empty() { target.to_vec() } else { place }
}

/// The faults of the sources under `root`, one line each.
fn faults(root: &Path) -> Vec<String> {
    let mut files = Vec::new();
    sources(root, &mut files);
    files.sort();
    let read = |file: &PathBuf| std::fs::read_to_string(file).expect("a source file");
    let handed_on: BTreeMap<_, _> = files.iter().map(|file| (place(root, file), handed_on(&read(file)))).collect();
    let mut faults = Vec::new();
    // Which file of each folder imports from which other, and in which line.
    let mut arrows: BTreeMap<String, BTreeMap<(String, String), String>> = BTreeMap::new();
    for file in &files {
        let place = place(root, file);
        if place == ["lib"] {
            continue;
        }
        let text = read(file);
        let (top, lines) = (floors(""), text.lines().collect::<Vec<_>>());
        let Some(own) = top.get(&*place[0]) else {
            faults.push(format!("src/{}: on no floor of tests/floors.txt", place[0]));
            continue;
        };
        for import in imports(&text) {
            let line = lines.get(import.line - 1).map_or("", |line| line.trim());
            let at = format!("{}:{}: {line}", file.display(), import.line);
            let target = resolved(&target(&place, &import), &handed_on);
            let Some(first) = target.first() else { continue };
            match top.get(&**first) {
                None if import.path[0] == "crate" => {
                    faults.push(format!("{at}\n    {first} is named at the crate's root, not where it lives"));
                }
                // A `super` that stays inside of the file.
                None => {}
                Some(floor) if floor >= own && *first != place[0] => {
                    faults.push(format!("{at}\n    {first} is not below {}", place[0]));
                }
                Some(_) => {}
            }
            // Compares floors inside of each folder that contains both.
            let shared = place.iter().zip(&target).take_while(|(a, b)| a == b).count();
            if let (1.., Some(from), Some(to)) = (shared, place.get(shared), target.get(shared)) {
                let folder = place[..shared].join("/");
                let is_file = |name: &String| files.contains(&root.join(&folder).join(name).with_extension("rs"));
                if is_file(to) {
                    let inner = floors(&folder);
                    if let (Some(own), Some(floor)) = (inner.get(&**from), inner.get(&**to)) {
                        if floor >= own {
                            faults.push(format!("{at}\n    {folder}/{to} is not below {folder}/{from}"));
                        }
                    }
                    arrows.entry(folder).or_default().entry((from.clone(), to.clone())).or_insert(at);
                }
            }
        }
    }
    for (folder, arrows) in &arrows {
        if let Some(circle) = circle(arrows.keys()) {
            let steps = circle.windows(2).map(|step| arrows[&(step[0].clone(), step[1].clone())].as_str());
            faults.push(format!(
                "a circle in {folder}: {}\n    {}",
                circle.join(" > "),
                steps.collect::<Vec<_>>().join("\n    ")
            ));
        }
        let listed = floors(folder);
        let missing = arrows.keys().flat_map(|(from, to)| [from, to]).filter(|name| !listed.contains_key(&***name));
        let missing: BTreeSet<_> = missing.filter(|_| !listed.is_empty()).collect();
        faults.extend(missing.iter().map(|name| format!("src/{folder}/{name}: on no floor of tests/floors.txt")));
    }
    faults
}

/// A circle of arrows, if there is one. Its first member is also its last.
fn circle<'a>(arrows: impl Iterator<Item = &'a (String, String)> + Clone) -> Option<Vec<String>> {
    let next =
        |from: &str| arrows.clone().filter(|arrow| arrow.0 == from).map(|arrow| arrow.1.clone()).collect::<Vec<_>>();
    for (start, _) in arrows.clone() {
        let (mut seen, mut paths) = (BTreeSet::new(), vec![vec![start.clone()]]);
        while let Some(path) = paths.pop() {
            for to in next(path.last().expect("not empty")) {
                let longer = path.iter().cloned().chain([to.clone()]).collect();
                if to == *start {
                    return Some(longer);
                }
                if seen.insert(to) {
                    paths.push(longer);
                }
            }
        }
    }
    None
}

#[test]
fn imports_go_down_only() {
    let faults = faults(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(faults.is_empty(), "\n{}\n{} faults", faults.join("\n"), faults.len());
}

/// Writes a tree of sources, and returns its faults.
fn tried(files: &[(&str, &str)]) -> String {
    let root =
        std::env::temp_dir().join(format!("revocable-floors-{}-{:?}", std::process::id(), std::thread::current().id()));
    for (name, text) in files {
        let file = root.join(name);
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        std::fs::write(file, text).expect("a file");
    }
    let faults = faults(&root).join("\n");
    std::fs::remove_dir_all(root).expect("the folder goes");
    faults
}

#[test]
fn what_is_wrong_is_found_with_its_line() {
    assert_eq!(tried(&[("view.rs", "use crate::sys::{self, map::{A, B}};\n// crate::region::Region\n")]), "");
    let upward = tried(&[("sys.rs", "\nuse crate::{\n    sys::x,\n    view::View,\n};\n"), ("view.rs", "")]);
    assert!(upward.contains("sys.rs:4: view::View,") && upward.contains("view is not below sys"), "{upward}");
    let in_code = tried(&[("sys/map.rs", "fn f() { crate::view::View::new() }"), ("view.rs", "")]);
    assert!(in_code.contains("view is not below sys"), "{in_code}");
    let by_super = tried(&[("sys/map.rs", "use super::super::view::View;"), ("view.rs", "")]);
    assert!(by_super.contains("view is not below sys"), "{by_super}");
    let beside = tried(&[("raw.rs", "use crate::monitor::Monitor;"), ("monitor.rs", "")]);
    assert!(beside.contains("monitor is not below raw"), "{beside}");
    let root = tried(&[("view.rs", "use crate::Region;")]);
    assert!(root.contains("Region is named at the crate's root"), "{root}");
    let unknown = tried(&[("attic.rs", "")]);
    assert!(unknown.contains("src/attic: on no floor"), "{unknown}");
    let circle = tried(&[
        ("view/a.rs", "use super::b::B;"),
        ("view/b.rs", "use crate::view::c::C;"),
        ("view/c.rs", "\nuse super::a::A;"),
    ]);
    assert!(
        circle.contains("a circle in view: a > b > c > a") && circle.contains("c.rs:2: use super::a::A;"),
        "{circle}"
    );
    let handed_on = tried(&[
        ("view.rs", "mod a;\nmod b;\npub(crate) use b::{B, C};"),
        ("view/a.rs", "use super::B;"),
        ("view/b.rs", "use crate::view::a::A;"),
    ]);
    assert!(handed_on.contains("a circle in view: a > b > a"), "{handed_on}");
    let inner = tried(&[("pci/regs.rs", "use super::device::D;"), ("pci/device.rs", "use super::regs::R;")]);
    assert!(inner.contains("pci/device is not below pci/regs"), "{inner}");
}

#[test]
fn the_table_names_what_there_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for folder in ["", "pci"] {
        for name in floors(folder).keys() {
            assert!(root.join(folder).join(name).with_extension("rs").exists(), "{folder}/{name}");
        }
    }
}
