//! Runs a command several times and prints the medians as JSON; `benches/compare.sh`
//! uses it.
//!
//! ```text
//! measure RUNS [--copy FROM TO] [--stdin FILE] -- COMMAND [ARG]...
//! {"wall":seconds,"cpu":seconds,"rss":bytes}
//! ```
//!
//! The command's output goes nowhere; its input is empty, or FILE. With `--copy`, TO is made
//! afresh from FROM before each run, and not measured. `rss` is the largest of all runs. It
//! is a program of its own because a process's peak memory begins with that of whoever
//! started it, and this one is small.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a tool of the benches: a panic is the message"
)]

use std::{
    env, fs,
    process::{Command, Stdio},
    time::Instant,
};

use nix::sys::{
    resource::{Usage, UsageWho, getrusage},
    time::TimeValLike,
};

fn main() {
    let mut args = env::args().skip(1);
    let runs: usize = args.next().expect("RUNS").parse().expect("RUNS");
    let (mut copy, mut input) = (None, None);
    loop {
        match args.next().expect("--").as_str() {
            "--copy" => copy = Some((args.next().expect("FROM"), args.next().expect("TO"))),
            "--stdin" => input = Some(args.next().expect("FILE")),
            word => {
                assert_eq!(word, "--");
                break;
            }
        }
    }
    let command: Vec<String> = args.collect();

    let (mut walls, mut cpus) = (Vec::new(), Vec::new());
    // One run more, not counted: it brings the files into the page cache.
    for run in 0..=runs {
        if let Some((from, to)) = &copy {
            fs::copy(from, to).expect("copy");
        }
        let stdin = match &input {
            Some(file) => fs::File::open(file).expect("the input").into(),
            None => Stdio::null(),
        };
        let before = cpu(&children());
        let start = Instant::now();
        let status = Command::new(&command[0])
            .args(&command[1..])
            .stdin(stdin)
            .stdout(Stdio::null())
            .status()
            .expect("the command starts");
        let wall = start.elapsed().as_secs_f64();
        assert!(status.success(), "{command:?}: {status}");
        if run > 0 {
            walls.push(wall);
            cpus.push(cpu(&children()) - before);
        }
    }
    let rss = children().max_rss() * 1024;
    println!(
        r#"{{"wall":{:.6},"cpu":{:.6},"rss":{rss}}}"#,
        median(walls),
        median(cpus)
    );
}

fn children() -> Usage {
    getrusage(UsageWho::RUSAGE_CHILDREN).unwrap()
}

fn cpu(usage: &Usage) -> f64 {
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    #[expect(clippy::cast_precision_loss, reason = "a time for people")]
    let seconds = micros as f64 / 1e6;
    seconds
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
