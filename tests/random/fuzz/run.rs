//! Carries a sequence out, in the crate and in the model, and compares the results.

use super::model::{Allowed, Answer, Machine, Model, State};
use super::op::{Build, Op, Place, Via};
use super::real::{Real, Waiting};
use super::watch::Watched;
use crate::support::matrix::{Case, Memory};
use revocable_mmio::{AccessError, Mapping, OnDisabled, Strategy, Support};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The number of bytes that a reset's callback fills.
pub(crate) const RESET_FILLS: usize = 64;

pub(crate) fn machine() -> Machine {
    let support = Support::current();
    Machine { userfaultfd: support.userfaultfd(), kernel_faults: support.sees_kernel_faults(), is_legal }
}

fn is_legal(strategy: Strategy, memory: Memory) -> bool {
    Case { strategy, memory, policy: OnDisabled::Sigbus }.is_legal()
}

/// Runs a sequence.
///
/// # Errors
/// The first result that the model does not allow, and its operation.
pub(crate) fn run(history: &[Op]) -> Result<(), String> {
    run_telling(history, || ())
}

/// Runs a sequence, and calls `begins` when an operation begins.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_telling(history: &[Op], mut begins: impl FnMut()) -> Result<(), String> {
    let watched = Watched::new(history);
    let mut run = Run { model: Model::new(machine()), real: Real::default(), watched, begins: &mut begins, at: 0 };
    run.frame(history)?;
    run.step(&Op::Unlimit)?;
    // The remaining objects are dropped in this order. The guards have ended with their frames.
    for pin in 0..super::op::PINS {
        run.step(&Op::Unpin { pin })?;
    }
    for region in 0..super::op::REGIONS {
        run.content(region)?;
        run.step(&Op::DropRegion { region })?;
    }
    if !run.real.waiting.is_empty() {
        return Err("a thread still waits, though every region is gone".to_owned());
    }
    for mapping in 0..super::op::MAPPINGS {
        run.step(&Op::Unmap { mapping })?;
    }
    Ok(())
}

struct Run<'a> {
    model: Model,
    real: Real,
    watched: Watched,
    begins: &'a mut dyn FnMut(),
    /// The number of operations that were taken.
    at: usize,
}

impl Run<'_> {
    /// Runs up to the end of the guard that began this frame, or of the sequence.
    fn frame(&mut self, history: &[Op]) -> Result<(), String> {
        while let Some(op) = history.get(self.at) {
            self.at += 1;
            self.watched.step(self.at);
            (self.begins)();
            match *op {
                Op::Guard { mapping } => self.guarded(op, mapping, history)?,
                Op::Unguard if !self.model.guards.is_empty() => return Ok(()),
                _ => self.step(op)?,
            }
        }
        Ok(())
    }

    fn guarded(&mut self, op: &Op, slot: usize, history: &[Op]) -> Result<(), String> {
        let Some(mapping) = self.real.mappings[slot].clone() else { return Ok(()) };
        let access = mapping.try_access();
        let answer = access.as_ref().map_or_else(|e| Answer::Refused(*e), |_| Answer::Done);
        self.judge(op, self.model.expect(op).unwrap_or_default(), &answer)?;
        if access.is_err() {
            return Ok(());
        }
        self.invariants(op)?;
        let framed = self.frame(history);
        drop(access);
        framed?;
        self.model.apply(&Op::Unguard, &Answer::Done);
        self.after(&Op::Unguard)
    }

    fn step(&mut self, op: &Op) -> Result<(), String> {
        if self.model.expect(op).is_none() {
            return Ok(());
        }
        let holes = self.model.holes();
        // Holes cannot be filled with a limit either.
        let limited = self.model.limit.is_some() && *op != Op::Unlimit;
        if limited && !holes.is_empty() && self.model.maps(op) {
            return Ok(());
        }
        for (slot, pages) in holes {
            let page = self.model.mapping(slot).map_or(1, |(_, region)| region.page);
            if !limited && (self.model.maps(op) || self.real.is_taken(slot, pages, page)) {
                self.real.fence(slot, pages, page);
                self.model.fence(slot, pages);
            }
        }
        // Asked again, because filling a hole may change the result.
        let Some(allowed) = self.model.expect(op) else { return Ok(()) };
        let waits_in_vain = allowed.iter().any(|a| matches!(a, Allowed::Is(Answer::TimedOut { .. })));
        let patience = if waits_in_vain { Duration::from_millis(1) } else { Duration::from_secs(30) };
        let since = Instant::now();
        let answer = loop {
            let answer = self.real.step(op, &self.model, patience);
            // A monitor in the middle of a fault makes the region busy for a moment. So do the pins of a region that
            // ends in the background.
            let ends = allowed.iter().any(|allowed| matches!(allowed, Allowed::Is(Answer::Gone)));
            let passing = matches!(answer, Answer::Busy { guards: 0, pins } if pins == 0 || ends);
            let admitted = allowed.iter().any(|allowed| allowed.admits(&answer));
            if admitted || !passing || since.elapsed() > crate::support::patience(Duration::from_secs(30)) {
                break answer;
            }
            std::thread::yield_now();
        };
        self.judge(op, allowed, &answer)?;
        self.after(op)
    }

    fn judge(&mut self, op: &Op, allowed: Vec<Allowed>, answer: &Answer) -> Result<(), String> {
        if !allowed.iter().any(|allowed| allowed.admits(answer)) {
            return Err(format!("{} returned {answer:x?}, not {allowed:x?}", super::text::line(op)));
        }
        self.model.apply(op, answer);
        Ok(())
    }

    fn after(&mut self, op: &Op) -> Result<(), String> {
        self.await_ends()?;
        self.join()?;
        self.invariants(op)
    }

    /// A drop does not wait. If a guard or a pin is held, the region ends in the background.
    fn await_ends(&mut self) -> Result<(), String> {
        let slots = self.real.mappings.iter().zip(&self.model.mappings);
        let known = slots.filter_map(|(real, model)| Some((model.as_ref()?.region, real.as_ref()?)));
        let ending = self.real.ending.iter().map(|(id, mapping)| (*id, mapping));
        let gone = |id: usize| self.model.regions[id].state == State::Gone;
        for (id, mapping) in known.chain(ending).filter(|(id, _)| gone(*id)) {
            let since = Instant::now();
            while !is_gone(mapping) {
                if since.elapsed() > crate::support::patience(Duration::from_secs(30)) {
                    return Err(format!("region number {id} was dropped, and is not gone"));
                }
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        self.real.ending.retain(|(id, _)| self.model.regions[*id].state != State::Gone);
        Ok(())
    }

    /// Joins the threads whose wait has ended.
    fn join(&mut self) -> Result<(), String> {
        let settled = |model: &Model, waiting: &Waiting| model.regions[waiting.region].state != State::Disabled;
        while let Some(at) = self.real.waiting.iter().position(|waiting| settled(&self.model, waiting)) {
            let waiting = self.real.waiting.swap_remove(at);
            let gone = self.model.regions[waiting.region].state == State::Gone;
            let listed = self.model.waiting.iter().position(|(region, _)| *region == waiting.region);
            self.model.waiting.swap_remove(listed.unwrap_or_default());
            waiting.join(gone, &mut self.model)?;
        }
        Ok(())
    }

    /// Checks what holds after every operation.
    fn invariants(&mut self, op: &Op) -> Result<(), String> {
        let after = || format!("after {}", super::text::line(op));
        for slot in 0..super::op::REGIONS {
            let (Some((id, model)), Some(region)) = (self.model.region(slot), &self.real.regions[slot]) else {
                continue;
            };
            let stats = region.stats();
            // Without a userfaultfd no access waits, and a reset refuses accesses.
            let told = if self.model.machine.userfaultfd { model.degraded } else { None };
            // A mapping that the kernel gave to the crate may have filled the hole.
            let degraded = told.map_or(stats.degraded, |most| stats.degraded.min(most));
            let is = (region.is_enabled(), stats.guards, stats.pins, stats.degraded);
            let should = (model.state == State::Enabled, model.guards, self.model.pins(id).0, degraded);
            if is != should {
                return Err(format!("{}: region {slot} (enabled, guards, pins, degraded) {is:?}: {should:?}", after()));
            }
        }
        if !matches!(
            op,
            Op::Disable { .. }
                | Op::Enable { .. }
                | Op::Reset { .. }
                | Op::All { .. }
                | Op::DropRegion { .. }
                | Op::Map { .. }
                | Op::Region { .. }
                | Op::Unguard
                | Op::Unpin { .. }
        ) {
            return Ok(());
        }
        // Every mapping has the model's content, also for raw accesses: G1 and G2.
        for slot in 0..super::op::MAPPINGS {
            let Some((mapping, _)) = self.model.mapping(slot) else { continue };
            for at in [0, mapping.len - 1] {
                let probe = Op::Load { mapping: slot, via: Via::Raw, width: 1, at: Place::Far(at) };
                let Some(allowed) = self.model.expect(&probe) else { continue };
                let answer = self.real.step(&probe, &self.model, Duration::ZERO);
                self.judge(&probe, allowed, &answer).map_err(|e| format!("{}: {e}", after()))?;
            }
        }
        Ok(())
    }

    /// The owner's view has the model's content: nothing is lost, and nothing was added.
    fn content(&self, slot: usize) -> Result<(), String> {
        let (Some((_, model)), Some(region)) = (self.model.region(slot), &self.real.regions[slot]) else {
            return Ok(());
        };
        let mut content = vec![0; model.bytes.len()];
        region.owner().read_slice(0, &mut content).map_err(|e| e.to_string())?;
        match content.iter().zip(&model.bytes).position(|(is, should)| is != should) {
            None => Ok(()),
            Some(at) => Err(format!("region {slot} has {:#x} at {at:#x}, not {:#x}", content[at], model.bytes[at])),
        }
    }
}

fn is_gone(mapping: &Arc<Mapping>) -> bool {
    matches!(mapping.try_access(), Err(AccessError::Gone { .. }))
}

/// True if it needs a process of its own.
pub(crate) fn is_rude(history: &[Op]) -> bool {
    history.iter().any(Op::is_rude)
}

/// True if a region of it needs huge pages.
pub(crate) fn wants_huge_pages(history: &[Op]) -> bool {
    history.iter().any(|op| matches!(op, Op::Region { build: Build { memory: Memory::Huge, .. }, .. }))
}
