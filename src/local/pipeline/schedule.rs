//! Which jobs may start, and which are skipped, from how the others ended. Pure: it is told what
//! happened and asked what is next (GitLab: `Ci::ProcessPipelineService`).

use super::model::{Job, When};

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Not chosen on the command line.
    LeftOut,
    /// Waits for other jobs.
    Waiting,
    Running,
    Success,
    Failed {
        /// Whether `allow_failure` covers it.
        allowed: bool,
    },
    /// Stopped by the user.
    Canceled,
    /// Will not run, as others did not end the way it needs.
    Skipped,
    /// Will not run, as nobody named it.
    Manual {
        /// Whether later stages do not run without it.
        blocks: bool,
    },
}

impl State {
    /// Whether nothing more will happen to the job.
    pub(crate) fn is_final(self) -> bool {
        !matches!(self, State::Waiting | State::Running)
    }
}

enum Verdict {
    Wait,
    Start,
    Skip,
}

/// The states of a pipeline's jobs.
#[derive(Debug)]
pub(crate) struct Schedule {
    jobs: Vec<ScheduledJob>,
}

#[derive(Debug)]
struct ScheduledJob {
    when: When,
    /// Jobs it waits for.
    after: Vec<usize>,
    /// Whether it waits for them by `needs`, not by stage.
    dag: bool,
    state: State,
}

impl Schedule {
    /// All jobs of the pipeline, of which only the `chosen` run.
    pub(crate) fn new(jobs: &[Job], chosen: &[bool]) -> Self {
        let entries = jobs.iter().enumerate().map(|(index, job)| {
            let after = match &job.needs {
                Some(needs) => needs.iter().map(|need| need.job).collect(),
                None => (0..jobs.len()).filter(|&other| jobs[other].stage < job.stage).collect(),
            };
            let state = match job.when {
                _ if !chosen.get(index).copied().unwrap_or(false) => State::LeftOut,
                When::Manual => State::Manual { blocks: !job.allow_failure.is_always() },
                _ => State::Waiting,
            };
            ScheduledJob { when: job.when, after, dag: job.needs.is_some(), state }
        });
        Self { jobs: entries.collect() }
    }

    pub(crate) fn state(&self, job: usize) -> State {
        self.jobs[job].state
    }

    /// Takes the next job that may start; it is running from now on.
    pub(crate) fn start_next(&mut self) -> Option<usize> {
        let next = (0..self.jobs.len()).find(|&job| {
            self.jobs[job].state == State::Waiting && matches!(self.verdict(job), Verdict::Start)
        })?;
        self.jobs[next].state = State::Running;
        Some(next)
    }

    /// Notes how a job ended.
    pub(crate) fn end(&mut self, job: usize, state: State) {
        self.jobs[job].state = state;
    }

    /// Marks the jobs that can no longer start; returns them.
    pub(crate) fn skip(&mut self) -> Vec<usize> {
        let mut skipped = Vec::new();
        while let Some(job) = (0..self.jobs.len()).find(|&job| {
            self.jobs[job].state == State::Waiting && matches!(self.verdict(job), Verdict::Skip)
        }) {
            self.jobs[job].state = State::Skipped;
            skipped.push(job);
        }
        skipped
    }

    /// Marks every job that has not started as canceled; returns them.
    pub(crate) fn cancel_waiting(&mut self) -> Vec<usize> {
        let waiting: Vec<usize> =
            (0..self.jobs.len()).filter(|&job| self.jobs[job].state == State::Waiting).collect();
        for &job in &waiting {
            self.jobs[job].state = State::Canceled;
        }
        waiting
    }

    /// Whether every job has its final state.
    pub(crate) fn is_done(&self) -> bool {
        self.jobs.iter().all(|job| job.state.is_final())
    }

    /// Whether the pipeline failed.
    pub(crate) fn failed(&self) -> bool {
        let bad = |state| matches!(state, State::Failed { allowed: false } | State::Canceled);
        self.jobs.iter().any(|job| bad(job.state))
    }

    fn verdict(&self, job: usize) -> Verdict {
        let entry = &self.jobs[job];
        let before = || entry.after.iter().map(|&other| self.jobs[other].state);
        // What waits for a manual job waits for ever, whatever its `when` is.
        let blocked =
            before().any(|s| matches!(s, State::Manual { blocks } if blocks || entry.dag));
        if blocked {
            return Verdict::Skip;
        }
        if before().any(|state| !state.is_final()) {
            return Verdict::Wait;
        }
        let failed =
            before().any(|s| matches!(s, State::Failed { allowed: false } | State::Canceled));
        let skipped = entry.dag && before().any(|s| s == State::Skipped);
        let starts = match entry.when {
            When::OnSuccess | When::Delayed => !failed && !skipped,
            When::OnFailure => failed,
            When::Always => true,
            When::Manual => false,
        };
        if starts { Verdict::Start } else { Verdict::Skip }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::jobs, *};

    /// Runs the pipeline one job at a time; jobs in `fail` fail. Returns names in order of start
    /// and of skipping.
    fn run(yaml: &str, fail: &[&str]) -> (Vec<String>, Vec<String>, bool) {
        let jobs = jobs(yaml);
        let mut schedule = Schedule::new(&jobs, &vec![true; jobs.len()]);
        let (mut started, mut skipped) = (Vec::new(), Vec::new());
        loop {
            skipped.extend(schedule.skip().into_iter().map(|job| jobs[job].name.clone()));
            let Some(job) = schedule.start_next() else { break };
            let name = jobs[job].name.clone();
            let end = if fail.contains(&name.as_str()) {
                State::Failed { allowed: jobs[job].allow_failure.allows(Some(1)) }
            } else {
                State::Success
            };
            schedule.end(job, end);
            started.push(name);
        }
        assert!(schedule.is_done(), "nothing may be left waiting");
        (started, skipped, schedule.failed())
    }

    #[test]
    fn stages_run_one_after_the_other() {
        let yaml = "stages: [b, t]\nt1: {stage: t, script: x}\nb1: {stage: b, script: x}\n\
                    post: {stage: .post, script: x}\npre: {stage: .pre, script: x}\n";
        assert_eq!(run(yaml, &[]).0, ["pre", "b1", "t1", "post"]);
        let jobs = jobs(
            "stages: [b, t]\nb1: {stage: b, script: x}\nb2: {stage: b, script: x}\nt1: {stage: t, script: x}\n",
        );
        let mut schedule = Schedule::new(&jobs, &[true; 3]);
        assert_eq!((schedule.start_next(), schedule.start_next()), (Some(0), Some(1)));
        schedule.end(0, State::Success);
        assert_eq!(schedule.start_next(), None, "the other job of the stage still runs");
        schedule.end(1, State::Success);
        assert_eq!(schedule.start_next(), Some(2));
    }

    #[test]
    fn a_failure_skips_what_needs_success_and_starts_what_waits_for_it() {
        let yaml = "stages: [a, b, c]\na: {stage: a, script: x}\nok: {stage: b, script: x}\n\
                    clean: {stage: b, script: x, when: always}\n\
                    alarm: {stage: c, script: x, when: on_failure}\nlate: {stage: c, script: x}\n";
        let (started, skipped, failed) = run(yaml, &["a"]);
        assert_eq!(started, ["a", "clean", "alarm"]);
        assert_eq!(skipped, ["ok", "late"]);
        assert!(failed);
        let (started, skipped, failed) = run(yaml, &[]);
        assert_eq!(started, ["a", "ok", "clean", "late"]);
        assert_eq!(skipped, ["alarm"]);
        assert!(!failed);
    }

    #[test]
    fn an_allowed_failure_is_as_good_as_success() {
        let yaml = "stages: [a, b]\na: {stage: a, script: x, allow_failure: yes}\nb: {stage: b, script: x}\n";
        let (started, _, failed) = run(yaml, &["a"]);
        assert_eq!(started, ["a", "b"]);
        assert!(!failed);
    }

    #[test]
    fn needs_start_a_job_before_its_stage_and_skips_go_along_them() {
        let yaml = "stages: [a, b, c]\nslow: {stage: a, script: x}\nquick: {stage: a, script: x}\n\
                    b: {stage: b, needs: [quick], script: x}\nc: {stage: c, needs: [b], script: x}\n\
                    free: {stage: c, needs: [], script: x}\n";
        let jobs = jobs(yaml);
        let mut schedule = Schedule::new(&jobs, &[true; 5]);
        let first: Vec<_> = std::iter::from_fn(|| schedule.start_next()).collect();
        assert_eq!(first, [0, 1, 4], "a job with empty needs starts at once");
        schedule.end(1, State::Success);
        assert_eq!(schedule.start_next(), Some(2), "while the other job of the first stage runs");
        let (started, skipped, _) = run(yaml, &["quick"]);
        assert_eq!(started, ["slow", "quick", "free"]);
        assert_eq!(skipped, ["b", "c"]);
    }

    #[test]
    fn a_manual_job_is_not_run_and_blocks_later_stages_only_when_it_may_not_fail() {
        let optional = "stages: [a, b]\nm: {stage: a, script: x, when: manual}\nb: {stage: b, script: x}\n\
                        d: {stage: b, needs: [m], script: x}\n";
        let (started, skipped, failed) = run(optional, &[]);
        assert_eq!((started, skipped, failed), (vec!["b".into()], vec!["d".into()], false));
        let blocking = "stages: [a, b]\nm: {stage: a, script: x, rules: [{when: manual}]}\n\
                        b: {stage: b, script: x, when: always}\n";
        assert_eq!(run(blocking, &[]).1, ["b"]);
    }

    #[test]
    fn jobs_that_are_left_out_hold_nobody_up() {
        let jobs = jobs(
            "stages: [a, b]\na: {stage: a, script: x}\nb: {stage: b, script: x, needs: [a]}\n",
        );
        let mut schedule = Schedule::new(&jobs, &[false, true]);
        assert_eq!(schedule.start_next(), Some(1));
        schedule.end(1, State::Canceled);
        assert!(schedule.is_done() && schedule.failed());
    }
}
