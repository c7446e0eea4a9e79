//! Replays recorded behaviour of the real vfio-pci against the library, row by row.
//!
//! Every row of `vfio/rows.tsv` is replayed and must give what it gave on Linux 6.12. Two lists have exceptions:
//! `vfio/differs.tsv` says what the library does instead, which is checked too, and why; `vfio/cannot.tsv` says why
//! there is nothing to try.
#![cfg(target_arch = "x86_64")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "a system call and its errno")]
#![expect(clippy::cast_possible_truncation, reason = "x86-64 only: usize is 64 bits; signals and codes are small")]
#![expect(unsafe_code, reason = "system calls on memory that is being revoked")]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod support;

mod config;
mod devices;
mod dispositions;
mod dma;
mod kicks;
mod mapped;
mod parts;
mod peers;
mod power;
mod races;
mod resets;
mod suite;
mod syscalls;

use revocable_mmio::{Region, Strategy};
use suite::Suite;

fn replay(strategy: Strategy) {
    if dispositions::load_if_asked(strategy) {
        return;
    }
    support::start();
    if let Err(e) = Region::builder(4096).strategy(strategy).build() {
        support::skip(&e.to_string(), support::at_its_best());
        return;
    }
    let mut suite = Suite::load(strategy);
    mapped::enabled(&mut suite);
    mapped::disabled(&mut suite);
    mapped::enabled_again(&mut suite);
    parts::partial(&mut suite);
    parts::forked(&mut suite);
    races::toggling(&mut suite);
    parts::while_disabled(&mut suite);
    resets::function(&mut suite);
    resets::bus(&mut suite);
    kicks::kicks(&mut suite);
    power::states(&mut suite);
    dma::dma(&mut suite);
    config::sizes(&mut suite);
    config::writes(&mut suite);
    power::virtual_functions(&mut suite);
    if strategy == Strategy::Withdraw {
        peers::second_process(&mut suite);
    }
    if let Err(wrong) = suite.finish() {
        panic!("{wrong}");
    }
}

#[test]
fn detach_does_what_the_driver_was_seen_to_do() {
    replay(Strategy::Detach);
}

#[test]
fn zap_does_what_the_driver_was_seen_to_do() {
    replay(Strategy::Zap);
}

#[test]
fn replace_does_what_the_driver_was_seen_to_do() {
    replay(Strategy::Replace);
}

#[test]
fn withdraw_does_what_the_driver_was_seen_to_do() {
    replay(Strategy::Withdraw);
}
