//! Runs the model's tests, and shows that each can fail.

use super::Mutation;
use std::env;
use std::process::Command;

/// How many of a model's interleavings Miri tries.
#[cfg(miri)]
const INTERLEAVINGS: usize = 4;

const LEAVE_OUT: &str = "REVOCABLE_MODEL_LEAVE_OUT";

/// Runs `model` through every interleaving with at most this many preemptions.
///
/// Under Miri: through a few interleavings, whose preemptions are Miri's.
pub(crate) fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    if let Ok(step) = env::var(LEAVE_OUT) {
        super::model::sabotage(step.parse().expect("a mutation's number"));
    }
    check(preemptions, model);
}

#[cfg(miri)]
fn check(_preemptions: usize, model: impl Fn()) {
    (0..INTERLEAVINGS).for_each(|_| model());
}

#[cfg(not(miri))]
fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    println!("{} interleavings", runs.load(Ordering::Relaxed));
}

/// Runs the test of this name with `step` left out, and checks that it fails with one of these messages.
///
/// In a process of its own, because a model that ends in a deadlock cannot be unwound.
pub(crate) fn fails_without(step: Mutation, test: &str, says: &[&str]) {
    let output = Command::new(env::current_exe().expect("a test has a binary"))
        .args(["--exact", test, "--nocapture"])
        .env(LEAVE_OUT, (step as u8).to_string())
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("the test binary runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let ran = String::from_utf8_lossy(&output.stdout).contains("running 1 test");
    assert!(ran, "there is no test {test}");
    assert!(!output.status.success(), "{test} does not notice that {step:?} is left out");
    assert!(says.iter().any(|words| said.contains(words)), "{test} without {step:?} fails otherwise:\n{said}");
}
