//! What the guide and the examples promise their readers: short pages that begin with an example, short programs.

use std::fs;
use std::path::{Path, PathBuf};

const PAGE: usize = 150;
const FIRST_EXAMPLE: usize = 25;
const PROGRAM: usize = 120;

/// The files of a folder of the package with this extension, with their texts.
fn texts(folder: &str, extension: &str) -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let found: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|is| is == extension))
        .map(|path| (path.clone(), fs::read_to_string(&path).expect("it is text")))
        .collect();
    assert!(!found.is_empty(), "nothing in {}", folder.display());
    found
}

/// What is wrong with a page, by its name and text and the text of `guide.rs`.
fn wrong(name: &str, page: &str, guide: &str) -> Option<String> {
    let lines = page.lines().count();
    let example = page.lines().position(|line| line.starts_with("```"));
    if lines >= PAGE {
        Some(format!("{lines} lines, {PAGE} are too many"))
    } else if example.is_none_or(|line| line >= FIRST_EXAMPLE) {
        Some(format!("no example in the first {FIRST_EXAMPLE} lines"))
    } else if page.contains("```ignore") || page.contains("```text") {
        Some("code that is not compiled".to_owned())
    } else if !guide.contains(&format!("include_str!(\"docs/{name}.md\")")) {
        Some("not a page of guide.rs".to_owned())
    } else if !guide.contains(&format!("]({name})")) {
        Some("not in the guide's table".to_owned())
    } else {
        None
    }
}

#[test]
fn pages_are_short_begin_with_an_example_and_are_in_the_table() {
    let guide = include_str!("../../src/guide.rs");
    for (path, page) in texts("src/docs", "md") {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        assert_eq!(wrong(&name, &page, guide), None, "{}", path.display());
    }
}

#[test]
fn a_page_that_breaks_a_rule_is_found() {
    let guide = "//! [x](x)\n#[doc = include_str!(\"docs/x.md\")]";
    let page = "What it is.\n\n```\nlet x = 1;\n```\n";
    assert_eq!(wrong("x", page, guide), None);
    assert!(wrong("x", &format!("{page}{}", "text\n".repeat(PAGE)), guide).is_some());
    assert!(wrong("x", &format!("{}{page}", "text\n".repeat(FIRST_EXAMPLE)), guide).is_some());
    assert!(wrong("x", "no example", guide).is_some());
    assert!(wrong("x", &page.replace("```\nlet", "```ignore\nlet"), guide).is_some());
    assert!(wrong("x", page, "//! [x](x)").is_some());
    assert!(wrong("x", page, &guide.replace("[x](x)", "")).is_some());
}

#[test]
fn examples_in_one_file_are_short() {
    for (path, program) in texts("examples", "rs") {
        let lines = program.lines().count();
        assert!(lines < PROGRAM, "{}: {lines} lines, {PROGRAM} are too many to copy", path.display());
    }
}
