//! Properties that can be tried for seconds or for hours.
//!
//! By default a property is tried with a fixed number of random cases. With `REVOCABLE_FUZZ_SECONDS` it is tried for
//! that long. The seed of every round is printed, and `REVOCABLE_FUZZ_SEED` makes it the first.

use proptest::strategy::Strategy;
use proptest::test_runner::{
    Config, FileFailurePersistence, RngAlgorithm, RngSeed, TestCaseError, TestError, TestRunner,
};
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::time::{Duration, Instant};

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{name}={text:?}: {e}")))
}

/// How long properties are tried, or `None` for a number of cases.
pub(crate) fn asked_time() -> Option<Duration> {
    variable("REVOCABLE_FUZZ_SECONDS").map(Duration::from_secs)
}

/// The file of a property's failures. Each is a seed that is tried first from then on, so the file belongs into the
/// repository. (Tests run in the package's directory, or without sources, where nothing is written.)
#[macro_export]
macro_rules! regressions {
    ($name:literal) => {
        ($name, concat!("tests/random/fuzz/regressions/", $name, ".txt"))
    };
}

/// Checks that a binary's copy of a corpus, which it has as it also runs where the sources are not, is all of the folder
/// `tests/FOLDER/fuzz/corpus`.
pub(crate) fn has_every_file(folder: &str, corpus: &[(&str, &str)]) {
    let Ok(files) = std::fs::read_dir(format!("{}/tests/{folder}/fuzz/corpus", env!("CARGO_MANIFEST_DIR"))) else {
        super::skip("the sources are not here", false);
        return;
    };
    let mut names: Vec<_> = files.flatten().map(|file| file.file_name().into_string().expect("a name")).collect();
    names.sort();
    assert_eq!(names, corpus.iter().map(|(name, _)| *name).collect::<Vec<_>>());
}

/// Tries `property` on values of `strategy`. A failure is shrunk, written to the file of [`regressions!`], and shown by
/// `show`.
pub(crate) fn check<S: Strategy>(
    (name, regressions): (&str, &'static str),
    cases: u32,
    strategy: &S,
    show: impl Fn(&S::Value) -> String,
    property: impl Fn(S::Value) -> Result<(), String>,
) {
    let time = asked_time();
    let since = Instant::now();
    // Without a given seed, the random keys of the hasher make one.
    let mut seed = variable("REVOCABLE_FUZZ_SEED").unwrap_or_else(|| RandomState::new().hash_one(name) >> 32);
    let mut tried = 0u64;
    loop {
        let config = Config {
            cases,
            rng_seed: RngSeed::Fixed(seed),
            rng_algorithm: RngAlgorithm::ChaCha,
            failure_persistence: Some(Box::new(FileFailurePersistence::Direct(regressions))),
            max_shrink_iters: 3000,
            max_shrink_time: 60_000,
            ..Config::default()
        };
        let result = TestRunner::new(config).run(strategy, |value| property(value).map_err(TestCaseError::fail));
        tried += u64::from(cases);
        match result {
            Ok(()) => {}
            Err(TestError::Fail(why, value)) => {
                panic!("{name}, REVOCABLE_FUZZ_SEED={seed}: {why}\n--- the smallest case found:\n{}---", show(&value))
            }
            Err(TestError::Abort(why)) => panic!("{name}, REVOCABLE_FUZZ_SEED={seed}: {why}"),
        }
        if time.is_none_or(|time| since.elapsed() >= time) {
            break;
        }
        seed = seed.wrapping_add(1);
    }
    if time.is_some() {
        // Past the test harness's capture.
        let _ = writeln!(std::io::stderr(), "fuzz: {name}: {tried} cases in {:?}, last seed {seed}", since.elapsed());
    }
}
