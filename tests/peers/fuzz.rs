//! Random sequences of what the owner of a region does, and of what a peer does to its descriptor and its mapping, against a
//! model that gives each result: a failure is shrunk. The peer's system calls come between the owner's, not amid them; that
//! is what `hostile::vandals_at_random` tries.
//! `REVOCABLE_FUZZ_SECONDS=600 cargo test --test peers fuzz::` runs for that long.

mod model;
mod op;
mod run;

use crate::POLICIES;
use crate::programs::program;
use crate::support;
use op::Op;

macro_rules! corpus {
    ($($name:literal)*) => { &[$(($name, include_str!(concat!("fuzz/corpus/", $name)))),*] };
}

/// Sequences that every run tries, as text: an operation a line, with a page and a value; `#` begins a comment.
const CORPUS: &[(&str, &str)] = corpus! {
    "a-hole-stays-a-hole.ops"
    "a-new-peer-while-withdrawn.ops"
    "cut-off-and-made-longer.ops"
    "longer-than-the-region.ops"
    "owner-on-a-window-that-is-cut-off.ops"
    "resets.ops"
    "stores-that-go-nowhere.ops"
};

/// With either policy.
fn run(history: &[Op]) -> Result<(), String> {
    POLICIES.into_iter().try_for_each(|policy| run::run(history, policy).map_err(|why| format!("{policy:?}: {why}")))
}

#[test]
fn a_region_does_what_its_model_does_whatever_a_peer_does() {
    support::start();
    require!(program("peer").is_some(), "no C compiler");
    let show = |history: &Vec<Op>| op::print(history);
    support::fuzz::check(regressions!("peers"), 32, &op::history(), show, |history| run(&history));
}

#[test]
fn the_corpus_does_what_its_model_does() {
    support::start();
    require!(program("peer").is_some(), "no C compiler");
    for (name, text) in CORPUS {
        let history = op::parse(text).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(!history.is_empty(), "{name} is empty");
        run(&history).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn every_file_of_the_corpus_is_tried() {
    support::start();
    support::fuzz::has_every_file("peers", CORPUS);
}

#[test]
fn what_a_failing_run_prints_is_what_the_corpus_reads() {
    support::start();
    let show = |history: &Vec<Op>| op::print(history);
    support::fuzz::check(regressions!("peers-round-trip"), 64, &op::history(), show, |history| {
        let read = op::parse(&op::print(&history))?;
        if read == history { Ok(()) } else { Err(format!("it was read as {}", op::print(&read))) }
    });
}
