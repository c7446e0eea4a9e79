//! Child processes, for tests that may die by a signal or change the whole process.

use super::watchdog::threads_of;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const WHICH: &str = "REVOCABLE_TEST_CHILD";
const PATIENCE: Duration = Duration::from_secs(60);

/// How a child ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) output: String,
}

impl Ended {
    /// Asserts that the child ran to its end without a panic or a signal.
    pub(crate) fn well(&self) {
        assert!(self.status.success(), "the child: {}\n{}", self.status, self.output);
    }

    pub(crate) fn by_signal(&self) -> Option<i32> {
        self.status.signal()
    }
}

/// A command for a new copy of the test binary that runs the calling test only. Must be called on the test's own
/// thread, which the harness names after the test.
pub(crate) fn this_test() -> Command {
    let me = std::env::current_exe().expect("the test binary has a path");
    let mut command = Command::new(me);
    let thread = std::thread::current();
    command.args([thread.name().expect("a test's thread has its name"), "--exact", "--nocapture", "--test-threads=1"]);
    command
}

/// Runs `body` in a process of its own: a new copy of the test binary that runs the calling test only. In that process
/// it does not return. Must be called on the test's own thread, as [`this_test`].
pub(crate) fn alone(body: impl FnOnce()) -> Ended {
    alone_for(PATIENCE, &[], body)
}

/// The same, with variables in the child's environment.
pub(crate) fn alone_with(vars: &[(&str, &str)], body: impl FnOnce()) -> Ended {
    alone_for(PATIENCE, vars, body)
}

/// The same, with a patience of its own. Lines about skips and about fuzzing are printed again.
pub(crate) fn alone_for(patience: Duration, vars: &[(&str, &str)], body: impl FnOnce()) -> Ended {
    let thread = std::thread::current();
    let test = thread.name().expect("a test's thread has its name");
    if std::env::var(WHICH).is_ok_and(|which| which == test) {
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err();
        // Ends without tearing down the rest of the process, which is not under test.
        std::process::exit(if died { 101 } else { 0 });
    }
    run(this_test().env(WHICH, test).envs(vars.iter().copied()), patience)
}

/// Runs the calling test once more, in a process of its own, with variables in its environment by which it knows what to do
/// instead. Called on the test's own thread, as [`this_test`] is.
pub(crate) fn again_with(vars: &[(&str, &str)]) -> Ended {
    run(this_test().envs(vars.iter().copied()), PATIENCE)
}

/// Runs a command of [`this_test`]'s to its end.
fn run(command: &mut Command, patience: Duration) -> Ended {
    let patience = super::patience(patience);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the test binary starts");
    let mut out = child.stdout.take().expect("piped");
    let mut err = child.stderr.take().expect("piped");
    let collect = |pipe: &mut dyn Read| {
        let mut text = Vec::new();
        let _ = pipe.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    };
    std::thread::scope(|scope| {
        let out = scope.spawn(|| collect(&mut out));
        let err = scope.spawn(|| collect(&mut err));
        let since = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("a child of ours") {
                break status;
            }
            if since.elapsed() > patience {
                let waits = threads_of(&child.id().to_string());
                let _ = child.kill();
                let _ = child.wait();
                let said = out.join().expect("a reader") + &err.join().expect("a reader");
                panic!("the child hung for {patience:?}: {command:?}\n{waits}\n{said}");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let output = out.join().expect("a reader") + &err.join().expect("a reader");
        assert!(!output.contains("running 0 tests"), "no such test, nothing was tried: {command:?}");
        for line in output.lines().filter(|line| line.contains("SKIP:") || line.starts_with("fuzz:")) {
            eprintln!("{line}");
        }
        Ended { status, output }
    })
}
