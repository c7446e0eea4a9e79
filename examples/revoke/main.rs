//! Shows, probes, stresses and times revocable device memory. Without a subcommand: the demonstration.

mod demo;
mod device;
mod figures;
mod interrupt;
mod latency;
mod output;
mod peer;
mod probe;
mod prometheus;
mod raw;
mod spread;
mod stress;
mod svg;

use clap::{Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

/// The exit code, beside 0 and clap's own 2 (wrong usage).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Every guarantee held.
    Good,
    /// A guarantee was broken.
    Broken,
}

const EXIT_BROKEN: u8 = 1;
const EXIT_CANNOT: u8 = 3;

/// Device memory that its owner can take away from every thread, system call and process at once, and give back.
#[derive(Parser)]
#[command(
    name = "revoke",
    version,
    propagate_version = true,
    after_help = "\
JSON: with --json the standard output is one document. Sizes are in bytes,
\"..._ns\" are nanoseconds, or null without a sample. Each has \"kernel\", and:
  demo     size, strategy, acts (at_s, call, why, took_ns, enabled, accesses:
           who, reached, refused, waited, last), stores_kept; disable, enable:
           count, p50_ns, p99_ns
  probe    features (each true or false), userfaultfd, sees_kernel_faults,
           best_strategy, lacks (features, costs, get_it_by)
  stress   size, strategy, seconds, seed, violation (null: none), disables,
           enables, resets, faults_mapped, pages_mapped, faults_parked,
           faults_failed, degraded; disable, enable: as demo; workers (way,
           reached, refused, wholly_while_revoked)
  latency  series (what, name, samples, p50_ns, p90_ns, p99_ns, max_ns)

Exit status:
  0  everything was as promised, also after Ctrl-C
  1  a guarantee was broken: the line with VIOLATION says how
  2  wrong usage
  3  this kernel or process cannot do what was asked for"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    /// Print one JSON document instead of text (`revoke --help` lists its keys).
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Threads, system calls and another process use a region while it is revoked, restored and reset (the default).
    Demo(demo::Args),
    /// Say what this kernel and this process can do.
    Probe,
    /// Revoke and restore under load, checking all the while that revoked means revoked and nothing is lost.
    Stress(stress::Args),
    /// Time one page fault, disable() and enable(): percentiles and histograms.
    Latency(latency::Args),
    /// Map the file that is the standard input, and access it as the socket that is the standard output asks for.
    #[command(hide = true)]
    Peer(peer::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command.unwrap_or_else(|| Command::Demo(demo::Args::default())) {
        Command::Demo(args) => demo::run(&args, cli.json),
        Command::Probe => probe::run(cli.json),
        Command::Stress(args) => stress::run(&args, cli.json),
        Command::Latency(args) => latency::run(&args, cli.json),
        Command::Peer(args) => peer::run(&args),
    };
    match done {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Broken) => ExitCode::from(EXIT_BROKEN),
        // The reader has closed the output.
        Err(e) if output::is_closed_pipe(&*e) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "revoke: {e}");
            ExitCode::from(EXIT_CANNOT)
        }
    }
}
