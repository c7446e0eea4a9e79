//! The operations, by chance and as text.

use proptest::prelude::*;

/// What is done. Each takes a page and a value, and makes of them what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// Waits, tries, or gives up, by the value.
    Disable,
    Enable,
    /// Stores the value meanwhile, by the owner's view.
    Reset,
    OwnerStore,
    OwnerLoad,
    /// By a mapping of the owner's process: by accessors, and by a plain load.
    OwnStore,
    OwnLoad,
    Store,
    Load,
    /// To the page, and to a part of it by the value.
    Truncate,
    /// As many pages as the value says.
    Punch,
    /// pwrite(2) at the start of the page.
    Write,
    Seal,
    Advise,
    Lock,
    Remap,
    /// Another mapping of the same descriptor.
    Map,
    /// The child of a fork goes on.
    Fork,
    /// The peer is killed, and another one gets a descriptor.
    Again,
}

const VERBS: [(u32, &str, Verb); 19] = [
    (8, "disable", Verb::Disable),
    (8, "enable", Verb::Enable),
    (2, "reset", Verb::Reset),
    (5, "owner-store", Verb::OwnerStore),
    (2, "owner-load", Verb::OwnerLoad),
    (4, "own-store", Verb::OwnStore),
    (4, "own-load", Verb::OwnLoad),
    (8, "store", Verb::Store),
    (4, "load", Verb::Load),
    (8, "truncate", Verb::Truncate),
    (4, "punch", Verb::Punch),
    (5, "write", Verb::Write),
    (1, "seal", Verb::Seal),
    (2, "advise", Verb::Advise),
    (1, "lock", Verb::Lock),
    (2, "remap", Verb::Remap),
    (1, "map", Verb::Map),
    (1, "fork", Verb::Fork),
    (1, "again", Verb::Again),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Op {
    pub(super) verb: Verb,
    pub(super) page: usize,
    pub(super) value: u64,
}

/// Random sequences. Pages beyond the region's end are among them.
pub(super) fn history() -> impl Strategy<Value = Vec<Op>> {
    let verbs = VERBS.into_iter().map(|(weight, _, verb)| (weight, Just(verb))).collect();
    let verb = prop::strategy::Union::new_weighted(verbs);
    let op = (verb, 0usize..7, 0u64..0x100).prop_map(|(verb, page, value)| Op { verb, page, value });
    prop::collection::vec(op, 1..50)
}

pub(super) fn line(op: &Op) -> String {
    let name = VERBS.iter().find(|(.., verb)| *verb == op.verb).map_or("?", |(_, name, _)| name);
    format!("{name} {} {:#x}", op.page, op.value)
}

pub(super) fn print(history: &[Op]) -> String {
    history.iter().map(|op| line(op) + "\n").collect()
}

pub(super) fn parse(text: &str) -> Result<Vec<Op>, String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(read).collect()
}

fn read(line: &str) -> Result<Op, String> {
    let [name, page, value] = line.split_ascii_whitespace().collect::<Vec<_>>()[..] else {
        return Err(format!("{line}: not a verb, a page and a value"));
    };
    let verb = VERBS.iter().find(|(_, known, _)| *known == name).map(|(.., verb)| *verb);
    let value = value.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let op = verb.zip(page.parse().ok()).zip(value).map(|((verb, page), value)| Op { verb, page, value });
    op.filter(|op| op.page < 7 && op.value < 0x100).ok_or_else(|| format!("{line}: no such verb, page or value"))
}
