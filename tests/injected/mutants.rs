//! Each step of a revocation is needed: if it is left out, the checks of G1 and G2 fail. Needs `--cfg
//! revocable_inject`.

use crate::one_at_a_time;
use crate::support;
use crate::support::matrix::{Case, Memory};
use crate::support::raw;
use revocable_mmio::{OnDisabled, Region, Strategy, inject};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;

/// The change during which the step is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum During {
    Disable,
    Enable,
    Reset,
}

/// The check of the guarantee tests, as a verdict. The error is the violation that it found.
fn check(case: &Case, step: Option<&'static str>, during: During) -> Result<(), String> {
    let region = case.region(2);
    let mapping = case.map(&region);
    let base = mapping.as_ptr().expose_provenance();
    mapping.write(0, SECRET).map_err(|e| e.to_string())?;
    raw::load64(base).map_err(|e| format!("{e:?}"))?;
    // A sound variant has all the time that a busy machine may need. A broken one hangs for ever.
    let patience = if step.is_none() { Duration::from_secs(20) } else { Duration::from_millis(500) };
    let within = |what: &str, access: fn(usize) -> Option<u64>| -> Result<Option<u64>, String> {
        let (told, tell) = mpsc::channel();
        thread::spawn(move || told.send(access(base)));
        tell.recv_timeout(patience).map_err(|_| format!("{what} hangs"))
    };
    inject::leave_out(step.filter(|_| during == During::Reset));
    let reset = region.reset(|_| {
        inject::leave_out(None);
        duplicated(&region, base)?;
        let (told, tell) = mpsc::channel();
        thread::spawn(move || told.send(raw::load64(base).ok()));
        match tell.recv_timeout(Duration::from_millis(50)) {
            Ok(got) => Err(format!("a load during a reset ended with {got:?}")),
            Err(_) => Ok(tell),
        }
    });
    let waiting = reset.map_err(|e| e.to_string())??;
    match waiting.recv_timeout(patience) {
        Ok(Some(SECRET)) => {}
        other => return Err(format!("a load that waited for a reset: {other:?}")),
    }
    inject::leave_out(step.filter(|_| during == During::Disable));
    let disabled = region.disable();
    inject::leave_out(None);
    disabled.map_err(|e| e.to_string())?;
    // Under Zap a monitor makes faults wait even where the file still stands in the range. A duplicate of the range
    // could reach that file.
    duplicated(&region, base)?;
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
        // The load that waits, under Block.
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

/// A duplicate of the range gives nothing of the region.
fn duplicated(region: &Region, base: usize) -> Result<(), String> {
    let Ok(copy) = raw::move_away(base, 0, region.len()) else { return Ok(()) };
    let got = raw::load64(copy);
    raw::unmap(copy, region.len()).map_err(|e| e.to_string())?;
    if got == Ok(SECRET) { Err("a duplicate has the content".to_owned()) } else { Ok(()) }
}

fn sound(case: &Case) -> bool {
    if !case.is_legal() {
        support::skip(&format!("{case} is not possible here"), support::at_its_best());
        return false;
    }
    check(case, None, During::Disable).unwrap_or_else(|e| panic!("{case} as it should be: {e}"));
    true
}

fn caught(case: Case, step: &'static str, during: During) {
    if !sound(&case) {
        return;
    }
    // The broken variant leaves its mappings behind. A thread that must see the fault may come too late on a busy
    // machine, so the check is repeated.
    let found = (0..8).find_map(|_| check(&case, Some(step), during).err());
    let Some(found) = found else { panic!("{case}: no check failed though {step} was left out of {during:?}") };
    println!("{case} without {step}: {found}");
}

/// Broken variants hang and leave mappings behind, so each gets a process of its own.
macro_rules! mutants {
    ($($name:ident: $strategy:ident $policy:ident $memory:ident $step:literal $during:ident;)*) => { $(
        #[test]
        fn $name() {
            let _one = one_at_a_time();
            support::child::alone(|| {
                let (strategy, policy, memory) = (Strategy::$strategy, OnDisabled::$policy, Memory::$memory);
                caught(Case { strategy, policy, memory }, $step, During::$during);
            })
            .well();
        }
    )* };
}

mutants! {
    // Nothing is put over the range.
    zap_without_the_cover: Zap Sigbus Memfd "cover" Disable;
    zap_without_the_cover_of_ones: Zap AllOnes Memfd "cover" Disable;
    zap_without_the_stand_in: Zap Block Memfd "stand-in" Disable;
    detach_without_the_cover: Detach Sigbus Memfd "cover" Disable;
    detach_without_the_cover_of_ones: Detach AllOnes Memfd "cover" Disable;
    detach_without_the_stand_in: Detach Block Memfd "stand-in" Disable;
    replace_without_the_cover: Replace Sigbus Memfd "cover" Disable;
    replace_without_the_cover_of_ones: Replace AllOnes Memfd "cover" Disable;
    replace_without_the_stand_in: Replace Block Memfd "stand-in" Disable;
    a_device_without_the_cover: Replace Sigbus Device "cover" Disable;
    a_device_without_the_cover_of_ones: Replace AllOnes Device "cover" Disable;
    a_device_without_the_stand_in: Replace Block Device "stand-in" Disable;
    // The same during a reset.
    zap_reset_without_the_stand_in: Zap Sigbus Memfd "stand-in" Reset;
    zap_reset_without_the_stand_in_for_ones: Zap AllOnes Memfd "stand-in" Reset;
    zap_reset_without_the_stand_in_for_block: Zap Block Memfd "stand-in" Reset;
    detach_reset_without_the_stand_in: Detach Sigbus Memfd "stand-in" Reset;
    detach_reset_without_the_stand_in_for_ones: Detach AllOnes Memfd "stand-in" Reset;
    detach_reset_without_the_stand_in_for_block: Detach Block Memfd "stand-in" Reset;
    replace_reset_without_the_stand_in: Replace Sigbus Memfd "stand-in" Reset;
    replace_reset_without_the_stand_in_for_ones: Replace AllOnes Memfd "stand-in" Reset;
    replace_reset_without_the_stand_in_for_block: Replace Block Memfd "stand-in" Reset;
    a_device_reset_without_the_stand_in: Replace Sigbus Device "stand-in" Reset;
    // Single calls of these steps.
    zap_without_mapping_the_empty_file: Zap Sigbus Memfd "mmap" Disable;
    zap_without_mapping_the_ones: Zap AllOnes Memfd "mmap" Disable;
    detach_without_mapping_the_empty_file: Detach Sigbus Memfd "mmap" Disable;
    replace_without_mapping_the_empty_file: Replace Sigbus Memfd "mmap" Disable;
    zap_without_moving_the_stand_in: Zap Block Memfd "mremap" Disable;
    detach_without_moving_the_stand_in: Detach Block Memfd "mremap" Disable;
    replace_without_moving_the_stand_in: Replace Block Memfd "mremap" Disable;
    zap_without_registering_the_stand_in: Zap Block Memfd "UFFDIO_REGISTER" Disable;
    detach_without_registering_the_stand_in: Detach Block Memfd "UFFDIO_REGISTER" Disable;
    replace_without_registering_the_stand_in: Replace Block Memfd "UFFDIO_REGISTER" Disable;
    detach_without_opening_the_stand_in: Detach Block Memfd "mprotect" Disable;
    // The steps that give a range back.
    zap_without_mapping_anew: Zap Sigbus Memfd "mremap" Enable;
    zap_without_rights: Zap Sigbus Memfd "mprotect" Enable;
    zap_without_waking: Zap Block Memfd "UFFDIO_WAKE" Enable;
    detach_without_moving_the_page_tables_back: Detach Sigbus Memfd "mremap" Enable;
    detach_without_waking: Detach Block Memfd "UFFDIO_WAKE" Enable;
    replace_without_mapping_anew: Replace Sigbus Memfd "mremap" Enable;
    replace_without_rights: Replace Sigbus Memfd "mprotect" Enable;
    replace_without_waking: Replace Block Memfd "UFFDIO_WAKE" Enable;
}

/// Putting a cover over the range drops its pages in any case. They are dropped before only to keep the order of
/// vfio-pci.
#[test]
fn the_zap_itself_is_not_what_a_revocation_relies_on() {
    let _one = one_at_a_time();
    support::child::alone(|| {
        for policy in support::matrix::POLICIES {
            let case = Case { strategy: Strategy::Zap, policy, memory: Memory::Memfd };
            if sound(&case) {
                check(&case, Some("zap"), During::Disable).unwrap_or_else(|e| panic!("{case}: {e}"));
            }
        }
    })
    .well();
}

/// The stress test fails, too, without the step that it is meant to check.
#[test]
fn the_stress_test_fails_when_the_cover_is_left_out() {
    let _one = one_at_a_time();
    support::child::alone(|| {
        for strategy in support::matrix::STRATEGIES {
            let case = Case { strategy, policy: OnDisabled::Sigbus, memory: Memory::Memfd };
            if !case.is_legal() {
                continue;
            }
            let sound = support::stress::hammer(&case, Duration::from_millis(200));
            assert!(sound.violations.is_empty(), "{:?}", sound.violations);
            inject::leave_out(Some("cover,zap,emptying"));
            let broken = support::stress::hammer(&case, Duration::from_secs(5));
            inject::leave_out(None);
            // Zap drops the pages before, and Detach moves them aside. A load maps them again from the file.
            assert!(!broken.violations.is_empty(), "{case}: no violation in {} rounds", broken.rounds);
            println!("{:?}", broken.violations);
        }
    })
    .well();
}
