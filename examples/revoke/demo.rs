//! `revoke demo`: a device's memory is taken away and given back while threads, system calls and another process use
//! it.

mod cast;
mod pagemap;
mod plain;
mod scene;
mod screen;
mod script;
mod strip;

use crate::device::{self, Way};
use crate::figures;
use crate::output::{self, Failed};
use crate::{Verdict, interrupt};
use scene::Scene;
use serde_json::json;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The region's size.
    #[arg(long, value_name = "BYTES", default_value = SIZE, value_parser = device::size)]
    size: usize,

    /// How it is revoked; only withdraw reaches another process, which takes part then.
    #[arg(long, value_enum, default_value_t = Way::Withdraw)]
    strategy: Way,

    /// Lines of text also in a terminal.
    #[arg(long)]
    plain: bool,
}

const SIZE: &str = "2M";

impl Default for Args {
    fn default() -> Self {
        Self { size: 2 << 20, strategy: Way::Withdraw, plain: false }
    }
}

pub(crate) fn run(args: &Args, as_json: bool) -> Result<Verdict, Failed> {
    let asked_to_end = interrupt::flag()?;
    let scene = Arc::new(Scene::new(args.size, args.strategy)?);
    let cast = scene.start()?;
    let draws = !args.plain && !as_json && io::stdout().is_terminal() && io::stdin().is_terminal() && !is_dumb();
    let played = if draws { screen::play(&scene, &asked_to_end) } else { plain::play(&scene, &asked_to_end, as_json) };
    scene.end(cast);
    let acts = played?;
    let kept = scene.check_kept();
    let mut out = io::stdout().lock();
    if as_json {
        let document = json!({
            "kernel": crate::probe::kernel(),
            "size": scene.region.len(),
            "strategy": scene.region.strategy().to_string(),
            "acts": acts,
            "disable": scene.disables.json(),
            "enable": scene.enables.json(),
            "stores_kept": kept.is_ok(),
        });
        output::json(&mut out, &document)?;
    } else {
        epilogue(&mut out, &scene, &kept)?;
    }
    Ok(if kept.is_ok() { Verdict::Good } else { Verdict::Broken })
}

fn is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

/// The lines that stay in the terminal afterwards.
fn epilogue(out: &mut impl Write, scene: &Scene, kept: &Result<u64, String>) -> io::Result<()> {
    let stats = scene.region.stats();
    writeln!(
        out,
        "{} changes and resets of {}, revoked by {}:",
        stats.disables + stats.enables + stats.resets,
        figures::bytes(scene.region.len()),
        scene.region.strategy()
    )?;
    for (what, took) in [("disable()", &scene.disables), ("enable()", &scene.enables)] {
        if let (Some(p50), Some(p99)) = (took.quantile(0.5), took.quantile(0.99)) {
            writeln!(
                out,
                "  {what:<10} median of {}: {}; 99% within {}",
                took.count(),
                figures::duration(p50),
                figures::duration(p99)
            )?;
        }
    }
    match kept {
        Ok(stores) => writeln!(out, "  every one of {} stores that returned is in the region", figures::count(*stores)),
        Err(e) => writeln!(out, "VIOLATION {e}"),
    }
}
