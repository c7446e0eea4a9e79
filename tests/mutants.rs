//! Each step of a revocation is there for a reason: leave one out, and the checks of G1 and G2 notice. Needs
//! `--cfg revocable_inject`.
#![cfg(revocable_inject)]

#[expect(dead_code, reason = "each test file uses its part")]
mod support;

use parking_lot::Mutex;
use revocable_mmio::{OnDisabled, Strategy, inject};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use support::matrix::{Case, Memory};
use support::raw;

/// Leaving steps out is the process's: one test at a time.
static ONE: Mutex<()> = Mutex::new(());

const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;

/// When the step is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum During {
    Disable,
    Enable,
}

/// The check that the guarantee tests make, as a verdict: what it found wrong.
fn check(case: &Case, step: Option<&'static str>, during: During) -> Result<(), String> {
    let region = case.region(2);
    let mapping = case.map(&region);
    let base = mapping.as_ptr().expose_provenance();
    mapping.write(0, SECRET).map_err(|e| e.to_string())?;
    raw::load64(base).map_err(|e| format!("{e:?}"))?;
    // What is sound has all the time that a busy machine may need; what is broken hangs for good.
    let patience = if step.is_none() { Duration::from_secs(20) } else { Duration::from_millis(500) };
    let within = |what: &str, access: fn(usize) -> Option<u64>| -> Result<Option<u64>, String> {
        let (told, tell) = mpsc::channel();
        thread::spawn(move || told.send(access(base)));
        tell.recv_timeout(patience).map_err(|_| format!("{what} hangs"))
    };
    inject::leave_out(step.filter(|_| during == During::Disable));
    let disabled = region.disable();
    inject::leave_out(None);
    disabled.map_err(|e| e.to_string())?;
    let mut waiting = None;
    if case.policy == OnDisabled::Block {
        let (told, tell) = mpsc::channel();
        thread::spawn(move || told.send(raw::load64(base).ok()));
        if let Ok(got) = tell.recv_timeout(Duration::from_millis(50)) {
            return Err(format!("a load of a blocked region ended with {got:?}"));
        }
        waiting = Some(tell);
    } else {
        let got = within("a load while disabled", |at| raw::load64(at).ok())?;
        if got == Some(SECRET) {
            return Err("a load got through".to_owned());
        }
    }
    inject::leave_out(step.filter(|_| during == During::Enable));
    let enabled = region.enable();
    inject::leave_out(None);
    enabled.map_err(|e| e.to_string())?;
    if let Some(tell) = waiting {
        // Somebody who waits, under Block.
        match tell.recv_timeout(patience) {
            Ok(Some(SECRET)) => {}
            Ok(got) => return Err(format!("the load that waited got {got:?}")),
            Err(_) => return Err("the load that waited hangs".to_owned()),
        }
    }
    match within("a load after enable", |at| raw::load64(at).ok())? {
        Some(SECRET) => Ok(()),
        got => Err(format!("after enable a load got {got:?}")),
    }
}

fn caught(strategy: Strategy, policy: OnDisabled, step: &'static str, during: During) {
    let case = Case { strategy, policy, memory: Memory::Memfd };
    if !case.is_legal() {
        return support::skip(&format!("{case} is not possible here"), support::at_its_best());
    }
    check(&case, None, during).unwrap_or_else(|e| panic!("{case} as it should be: {e}"));
    // What the broken variant leaves behind is not tidied up.
    let found = check(&case, Some(step), during);
    let Err(found) = found else { panic!("{case}: nobody noticed that {step} was left out of {during:?}") };
    println!("{case} without {step}: {found}");
}

/// Broken variants hang and leave mappings behind: each gets a process of its own.
macro_rules! mutants {
    ($($name:ident: $strategy:ident $policy:ident $step:literal $during:ident;)*) => { $(
        #[test]
        fn $name() {
            support::start();
            let _one = ONE.lock();
            support::child::alone(stringify!($name), || {
                caught(Strategy::$strategy, OnDisabled::$policy, $step, During::$during);
            })
            .well();
        }
    )* };
}

mutants! {
    zap_without_the_zap: Zap Block "madvise" Disable;
    zap_without_the_cover: Zap Sigbus "mmap" Disable;
    zap_without_all_ones: Zap AllOnes "mmap" Disable;
    zap_without_mapping_anew: Zap Sigbus "mremap" Enable;
    zap_without_registering_anew: Zap Block "UFFDIO_WAKE" Enable;
    detach_without_the_cover: Detach Sigbus "mmap" Disable;
    detach_without_moving_the_page_tables: Detach Sigbus "mremap" Disable;
    detach_without_moving_them_back: Detach Sigbus "mremap" Enable;
    detach_without_registering: Detach Block "UFFDIO_REGISTER" Disable;
    detach_without_waking: Detach Block "UFFDIO_WAKE" Enable;
    replace_without_the_cover: Replace Sigbus "mmap" Disable;
    replace_without_mapping_anew: Replace Sigbus "mremap" Enable;
    replace_without_registering: Replace Block "UFFDIO_REGISTER" Disable;
    replace_without_the_zap: Replace Block "madvise" Disable;
}

/// The stress test, too, notices what the title says it is for.
#[test]
fn the_stress_test_fails_when_the_zap_is_left_out() {
    support::start();
    let _one = ONE.lock();
    support::child::alone("the_stress_test_fails_when_the_zap_is_left_out", || {
        for strategy in support::matrix::STRATEGIES {
            let case = Case { strategy, policy: OnDisabled::Sigbus, memory: Memory::Memfd };
            if !case.is_legal() {
                continue;
            }
            let sound = support::stress::hammer(&case, Duration::from_millis(200));
            assert!(sound.violations.is_empty(), "{:?}", sound.violations);
            inject::leave_out(Some("cover"));
            let broken = support::stress::hammer(&case, Duration::from_secs(5));
            inject::leave_out(None);
            // Detach has moved the page tables away, and a load fills them anew from the file: noticed as well.
            assert!(!broken.violations.is_empty(), "{case}: nobody noticed in {} rounds", broken.rounds);
            println!("{:?}", broken.violations);
        }
    })
    .well();
}
