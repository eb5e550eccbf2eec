//! Time of all libraries, and the table of it.

use std::time::Instant;

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};

use crate::peers::{PEERS, Result};

/// Times that each library is measured, by turns.
pub const ROUNDS: u64 = 7;

/// What one library took, in seconds: wall time and CPU time of each run.
pub type Times = Vec<(f64, f64)>;

/// Wall and CPU time that `work` took.
pub fn time(work: impl FnOnce() -> Result<()>) -> Result<(f64, f64)> {
    let (start, cpu) = (Instant::now(), cpu()?);
    work()?;
    Ok((start.elapsed().as_secs_f64(), self::cpu()? - cpu))
}

/// Seconds of CPU, user and system, of all threads of this process.
fn cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let time = usage.user_time() + usage.system_time();
    Ok(time.num_microseconds() as f64 / 1e6)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The libraries that were measured, with the medians of their wall and CPU times.
fn medians(times: &[Times]) -> impl Iterator<Item = (&'static str, f64, f64)> {
    let measured = PEERS
        .iter()
        .zip(times)
        .filter(|(_, times)| !times.is_empty());
    measured.map(|((name, _), times)| {
        let wall = median(times.iter().map(|time| time.0));
        (*name, wall, median(times.iter().map(|time| time.1)))
    })
}

/// Prints the medians per request, a line for each library.
pub fn print(title: &str, count: usize, times: &[Times]) {
    println!("\n{title}; medians of {ROUNDS} runs, µs per request; ratios to the first\n");
    println!("| library | wall | CPU | ratio, wall | ratio, CPU |\n|---|---|---|---|---|");
    let each = 1e6 / count as f64;
    let mut first = None;
    for (name, wall, cpu) in medians(times) {
        let (wall1, cpu1) = *first.get_or_insert((wall, cpu));
        println!(
            "| {name} | {:.2} | {:.2} | {:.2} | {:.2} |",
            wall * each,
            cpu * each,
            wall / wall1,
            cpu / cpu1
        );
    }
}

/// Prints the medians of all requests in seconds, a JSON object for each library.
pub fn print_json(title: &str, times: &[Times]) {
    for (name, wall, cpu) in medians(times) {
        println!(r#"{{"title":"{title}","library":"{name}","wall":{wall:.6},"cpu":{cpu:.6}}}"#);
    }
}
