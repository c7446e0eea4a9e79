//! `revoke latency`: how long one page fault, `disable()` and `enable()` take.

mod measure;
mod ridges;
mod table;

use crate::Verdict;
use crate::device;
use crate::output::{self, Failed};
use measure::Series;
use serde_json::json;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Sizes of the regions whose revocation is timed, all pages touched.
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_value = "2M,64M", value_parser = device::size)]
    size: Vec<usize>,

    /// The strategies to compare; those that are not possible here are left out.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "zap,detach,replace,withdraw")]
    strategy: Vec<device::Way>,

    /// How long to spend on each row, at most.
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    millis: u64,

    /// Also draw the distributions.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, as_json: bool) -> Result<Verdict, Failed> {
    let spend = Duration::from_millis(args.millis);
    let mut series = measure::faults(spend)?;
    for way in &args.strategy {
        for &size in &args.size {
            match device::build("latency", size, *way) {
                Ok(region) => series.extend(measure::changes(&region, spend)?),
                // Not possible here. The table leaves it out, and `probe` says why.
                Err(_) if *way != device::Way::Best && !is_possible(*way) => {}
                Err(e) => return Err(e),
            }
        }
    }
    series.sort_by_key(|s| s.what);
    // The drawing first, so that a closed pipe at the table does not lose it.
    if let Some(path) = &args.svg {
        let drawing = ridges::draw(&series, &crate::probe::kernel());
        std::fs::write(path, drawing).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    let mut out = io::stdout().lock();
    if as_json {
        let rows: Vec<_> = series.iter().map(Series::json).collect();
        output::json(&mut out, &json!({ "kernel": crate::probe::kernel(), "series": rows }))?;
    } else {
        table::print(&mut out, &series)?;
    }
    Ok(Verdict::Good)
}

/// True if a region of the crate's own memory can be revoked this way.
fn is_possible(way: device::Way) -> bool {
    device::build("probe", 2 << 20, way).is_ok()
}
