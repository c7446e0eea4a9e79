//! Random sequences of all operations on regions and mappings, against a model that gives each result.
//! `REVOCABLE_FUZZ_SECONDS=600 cargo test --test random fuzz_regions` runs for that long.

use super::fuzz::op::Memory;
use super::fuzz::{CORPUS, forked, random, run, text, touch};
use crate::support;
use crate::support::matrix::{Case, HugePages};
use proptest::prelude::*;
use std::time::Duration;

const PAGES_OF_4K: &[Memory] = &[Memory::Memfd, Memory::Memfd, Memory::ShmFile, Memory::Device];

#[test]
fn regions_do_what_their_model_does() {
    support::start();
    let histories = random::history(PAGES_OF_4K, 100, true);
    let show = |history: &Vec<_>| text::print(history);
    support::fuzz::check(regressions!("regions"), 160, &histories, show, |history| run::run(&history));
}

/// The same with operations that change the process: each sequence runs in a process of its own.
#[test]
fn regions_do_what_their_model_does_whatever_is_done_to_their_process() {
    support::start();
    // A sequence that hangs is shrunk, too.
    let patience = support::fuzz::asked_time().unwrap_or_default() + Duration::from_secs(300);
    let ended = support::child::alone_for(patience, &[], || {
        // Probed once, before the children are forked.
        let _ = run::machine();
        let histories = random::history(PAGES_OF_4K, 60, false);
        let show = |history: &Vec<_>| text::print(history);
        support::fuzz::check(regressions!("rude"), 160, &histories, show, |history| forked::run(&history));
    });
    ended.well();
}

/// A second thread accesses the memory meanwhile: nothing gets through, and nothing is lost (G1, G2).
#[test]
fn whatever_changes_under_a_second_threads_accesses_nothing_gets_through_and_nothing_is_lost() {
    support::start();
    let memory = prop_oneof![Just(Memory::Memfd), Just(Memory::ShmFile), Just(Memory::Device)];
    let case = (random::way(), random::any_policy(), memory)
        .prop_map(|(strategy, policy, memory)| Case { strategy, policy, memory })
        .prop_filter("it can be had", Case::is_legal);
    let touched = (case, random::hand(), prop::collection::vec(random::touched_change(), 1..40));
    let show = |(case, hand, changes): &(Case, _, Vec<_>)| format!("{case} {hand:?} {changes:#?}\n");
    support::fuzz::check(regressions!("touched"), 48, &touched, show, |(case, hand, changes)| {
        touch::run(&case, hand, &changes).map_err(|why| format!("{case} {hand:?}: {why}"))
    });
}

/// The same as for pages of 4 KiB, if huge pages can be had.
#[test]
fn regions_of_huge_pages_do_what_their_model_does() {
    support::start();
    let could = support::at_its_best() && std::env::var_os("REVOCABLE_VM").is_none();
    let pages = HugePages::take(16);
    require!(pages.is_some(), "no huge pages of 2 MiB can be had: hugetlb is left out", could: could);
    let histories = random::history(&[Memory::Huge, Memory::Huge, Memory::Memfd], 60, true);
    let show = |history: &Vec<_>| text::print(history);
    support::fuzz::check(regressions!("huge"), 16, &histories, show, |history| run::run(&history));
}

#[test]
fn the_corpus_does_what_its_model_does() {
    support::start();
    let could = support::at_its_best() && std::env::var_os("REVOCABLE_VM").is_none();
    let pages = HugePages::take(16);
    for (name, history) in corpus().filter(|(_, history)| !run::is_rude(history)) {
        if run::wants_huge_pages(&history) && pages.is_none() {
            support::skip(&format!("no huge pages of 2 MiB can be had: {name} is left out"), could);
            continue;
        }
        run::run(&history).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn the_corpus_does_what_its_model_does_whatever_is_done_to_the_process() {
    support::start();
    let ended = support::child::alone(|| {
        let _ = run::machine();
        for (name, history) in corpus().filter(|(_, history)| run::is_rude(history)) {
            forked::run(&history).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    });
    ended.well();
}

fn corpus() -> impl Iterator<Item = (&'static str, Vec<super::fuzz::op::Op>)> {
    CORPUS.iter().map(|(name, text)| {
        let history = text::parse(text).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(!history.is_empty(), "{name} is empty");
        (*name, history)
    })
}

#[test]
fn every_file_of_the_corpus_is_tried() {
    support::start();
    support::fuzz::has_every_file("random", CORPUS);
}

#[test]
fn what_a_failing_run_prints_is_what_the_corpus_reads() {
    support::start();
    let histories = random::history(&[Memory::Memfd, Memory::Huge, Memory::ShmFile, Memory::Device], 60, false);
    let show = |history: &Vec<_>| format!("{history:#?}\n");
    support::fuzz::check(regressions!("round-trip"), 64, &histories, show, |history| {
        let text = text::print(&history);
        match text::parse(&text) {
            Ok(read) if read == history => Ok(()),
            Ok(read) => Err(format!("{text} was read as {}", text::print(&read))),
            Err(e) => Err(format!("{text}: {e}")),
        }
    });
}

/// The right words in any order, and any characters.
#[test]
fn no_text_upsets_the_reader_of_the_corpus() {
    support::start();
    let words: Vec<&str> = CORPUS.iter().flat_map(|(_, text)| text.split_ascii_whitespace()).collect();
    let word = prop_oneof![
        8 => prop::sample::select(words).prop_map(str::to_owned),
        1 => any::<u64>().prop_map(|number| number.to_string()),
        1 => any::<String>(),
    ];
    let line = prop::collection::vec(word, 0..12).prop_map(|words| words.join(" "));
    let texts = prop::collection::vec(line, 0..6).prop_map(|lines| lines.join("\n"));
    support::fuzz::check(regressions!("any-text"), 512, &texts, String::clone, |text| {
        // A sequence that was read is printed and read again.
        match text::parse(&text).map(|history| text::parse(&text::print(&history)) == Ok(history)) {
            Ok(false) => Err("it was not read the same again".to_owned()),
            Ok(true) | Err(_) => Ok(()),
        }
    });
}
