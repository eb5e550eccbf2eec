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

/// Prints the medians per request, a line for each library that has any.
pub fn print(title: &str, count: usize, times: &[Times]) {
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2] * 1e6 / count as f64
    };
    println!("\n{title}; medians of {ROUNDS} runs, µs per request; ratios to the first\n");
    println!("| library | wall | CPU | ratio, wall | ratio, CPU |\n|---|---|---|---|---|");
    let mut first = None;
    for ((name, _), times) in PEERS.iter().zip(times) {
        if times.is_empty() {
            continue;
        }
        let wall = median(times.iter().map(|time| time.0).collect());
        let cpu = median(times.iter().map(|time| time.1).collect());
        let (wall1, cpu1) = *first.get_or_insert((wall, cpu));
        let (of_wall, of_cpu) = (wall / wall1, cpu / cpu1);
        println!("| {name} | {wall:.2} | {cpu:.2} | {of_wall:.2} | {of_cpu:.2} |");
    }
}
