//! A fault of an access is recovered, and every other SIGBUS and SIGSEGV goes where it went before.
//!
//! A scenario that changes signal dispositions, or is meant to die, runs in a process of its own: this binary again, with
//! the scenario's name in the environment.

mod chains;
pub(in crate::raw) mod handlers;
mod masks;
#[cfg(all(target_arch = "x86_64", not(revocable_portable)))]
mod media;
mod scenarios;
mod stack;

use handlers::needs_recovery;
use nix::libc::{self, c_int};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

const SCENARIO: &str = "REVOCABLE_TEST_SCENARIO";

/// Not a test of its own: `run` starts it in another process.
#[test]
fn child() {
    if let Ok(name) = std::env::var(SCENARIO) {
        scenarios::scenario(&name);
    }
}

fn run(name: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "raw::signal::tests::child", "--nocapture", "--test-threads=1"])
        .env(SCENARIO, name)
        .output()
        .unwrap()
}

fn survives(name: &str) {
    let output = run(name);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("survived"), "{name}: {output:?}");
}

fn dies_of(name: &str, signal: c_int) -> String {
    let output = run(name);
    assert_eq!(output.status.signal(), Some(signal), "{name}: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_earlier_handler_gets_foreign_faults_and_only_those() {
    needs_recovery!();
    survives("earlier simple");
    survives("earlier siginfo");
}

#[test]
fn a_foreign_handler_may_use_the_crate() {
    needs_recovery!();
    survives("earlier nesting");
}

#[test]
fn a_one_shot_handler_is_called_once() {
    needs_recovery!();
    dies_of("earlier resethand", libc::SIGSEGV);
}

#[test]
fn a_later_handler_may_chain_or_ask() {
    needs_recovery!();
    survives("later");
    survives("own");
    survives("too late to own");
}

#[test]
fn a_foreign_fault_dies_of_the_right_signal() {
    dies_of("default segv", libc::SIGSEGV);
    dies_of("default bus", libc::SIGBUS);
    dies_of("ignored segv", libc::SIGSEGV);
    dies_of("rust segv", libc::SIGSEGV);
}

#[test]
fn a_sent_signal_is_foreign() {
    survives("sent to ignored");
    dies_of("sent to default", libc::SIGBUS);
    survives("sent to rust's");
    survives("sent during accesses");
}

#[test]
fn a_fault_in_the_callers_buffer_is_foreign() {
    dies_of("buffer read", libc::SIGSEGV);
    dies_of("buffer write", libc::SIGBUS);
}

#[test]
fn rust_still_reports_a_stack_overflow() {
    let stderr = dies_of("stack overflow", libc::SIGABRT);
    assert!(stderr.contains("has overflowed its stack"), "{stderr}");
}

#[test]
fn recovery_works_with_and_without_an_alternate_stack() {
    needs_recovery!();
    survives("alternate stack");
    survives("no alternate stack");
}

#[test]
fn a_handler_that_was_displaced_is_put_back_in_front() {
    needs_recovery!();
    survives("displaced");
    survives("displaced, own");
}

#[test]
fn handlers_that_chain_are_called_once_each_in_whatever_order_they_came() {
    needs_recovery!();
    survives("chain in front of a chain");
}

#[test]
fn a_handler_that_takes_itself_out_is_out() {
    needs_recovery!();
    dies_of("takes itself out and returns", libc::SIGSEGV);
    dies_of("takes itself out and raises", libc::SIGSEGV);
}

#[test]
fn a_chained_handler_has_the_mask_that_it_has_alone() {
    needs_recovery!();
    survives("masks");
}

#[cfg(all(target_arch = "x86_64", not(revocable_portable)))]
#[test]
fn copies_of_a_devices_memory_are_neither_string_moves_nor_wide_vectors() {
    let output = run("copies of devices");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && told.contains("survived"), "{output:?}");
    let has = |flag: &str| std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains(flag));
    // The two that have been seen on Intel's machines only.
    if has("GenuineIntel") && has(" fsrm") && has(" avx512bw") {
        assert!(told.contains("memory gets 7"), "the kinds of instruction are not told apart: {told}");
    }
}

#[test]
fn the_handler_takes_little_of_a_signal_stack() {
    needs_recovery!();
    survives("stack");
}

#[test]
fn a_forked_child_has_the_handlers_and_the_promise_of_its_parent() {
    needs_recovery!();
    survives("forked");
    survives("forked, own");
}

#[test]
fn a_handler_that_uses_the_crate_may_come_at_any_time() {
    needs_recovery!();
    survives("interrupted");
}
