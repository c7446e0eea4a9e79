//! The demonstration as lines of text, or as the acts of a JSON document.

use super::cast::{Actor, Counts, Role};
use super::scene::Scene;
use super::script::{Act, SCRIPT};
use crate::figures;
use crate::output::{self, Failed};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub(super) fn play(scene: &Arc<Scene>, asked_to_end: &AtomicBool, as_json: bool) -> Result<Vec<Value>, Failed> {
    // Each line is flushed, so that a reader gets it at once.
    let mut out: Box<dyn Write> = if as_json { Box::new(io::sink()) } else { Box::new(io::stdout()) };
    writeln!(
        out,
        "{} of device memory, revoked by {};\nmapped {} times in this process{}\n",
        figures::bytes(scene.region.len()),
        scene.region.strategy(),
        scene.actors.len() - usize::from(scene.has_peer()),
        if scene.has_peer() { " and once in another" } else { "" }
    )?;
    let mut acts = Vec::new();
    for scenario in &SCRIPT {
        if asked_to_end.load(Ordering::Relaxed) {
            break;
        }
        let at = scene.elapsed();
        writeln!(out, "{:>5.1} s  {}", at.as_secs_f64(), scenario.act.call())?;
        writeln!(out, "         {}", scenario.why(scene.has_peer()))?;
        let before: Vec<Counts> = scene.actors.iter().map(Actor::counts).collect();
        let took = scene.perform(scenario.act)?;
        wait(scenario.then, asked_to_end);
        let state = if scene.region.is_enabled() { "enabled" } else { "disabled" };
        if matches!(scenario.act, Act::Disable | Act::Enable) {
            writeln!(out, "         took {}, the region is {state}", figures::duration(took))?;
        }
        let mut met = Vec::new();
        for (actor, before) in scene.actors.iter().zip(before) {
            let counts = actor.counts() - before;
            writeln!(out, "         {:<18} {}", actor.role.name(), line(actor, counts))?;
            met.push(json!({
                "who": actor.role.name(),
                "reached": counts.reached,
                "refused": counts.refused,
                "waited": counts.waited,
                "last": Scene::gets(actor),
            }));
        }
        writeln!(out)?;
        acts.push(json!({
            "at_s": at.as_secs_f64(),
            "call": scenario.act.call(),
            "why": scenario.why(scene.has_peer()),
            "took_ns": output::json_nanos(Some(took)),
            "enabled": scene.region.is_enabled(),
            "accesses": met,
        }));
    }
    Ok(acts)
}

/// The outcomes of an actor's accesses during one act.
fn line(actor: &Actor, counts: Counts) -> String {
    let mut parts = Vec::new();
    if counts.reached > 0 {
        parts.push(format!("{} reached", figures::count(counts.reached)));
    }
    if counts.refused > 0 {
        let how = match actor.role {
            Role::Driver => "Err(Disabled)",
            Role::SystemCall => "EFAULT",
            Role::AllOnes | Role::Block => "all-ones",
            Role::Peer => "SIGBUS",
        };
        parts.push(format!("{} x {how}", figures::count(counts.refused)));
    }
    if counts.waited > 0 {
        parts.push(format!("{} waited", figures::count(counts.waited)));
    }
    if actor.waiting().is_some() {
        parts.push(Scene::gets(actor));
    }
    parts.join(", ")
}

fn wait(time: Duration, asked_to_end: &AtomicBool) {
    let until = Instant::now() + time;
    while Instant::now() < until && !asked_to_end.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(20).min(until.saturating_duration_since(Instant::now())));
    }
}
