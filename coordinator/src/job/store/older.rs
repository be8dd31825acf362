//! Jobs of the release before, with which this one goes on.

use super::database::{Durable, Statement, Value};
use super::written::Written;
use super::{Store, StoreError, StoredJob, encode, key};
use protocol::{RELEASE, Version};

impl Store {
    /// Writes those that have not ended anew: all of a job is of one wire version. What no longer can be read stays as it is.
    pub(super) fn renew(&mut self) -> Result<(), StoreError> {
        let newest = i64::from(Version::newest().number());
        let select = "SELECT jobs.*, calls, calls_total, bytes \
                      FROM jobs LEFT JOIN checkpoints ON job = id WHERE ended IS NULL AND wire < $1";
        let select = Statement::new(select, [newest.into()]);
        let what = "the jobs of the release before";
        let jobs =
            self.rows(&what, select, |mut row| Written::of(&mut row, "accepted")?.stored_job(row))?;
        for StoredJob { job, asked, run, .. } in jobs.into_iter().flatten() {
            let what = format_args!("{job}, which the release before accepted,");
            let spec = run.as_ref().map(|run| encode(&what, &run.spec)).transpose()?;
            let plan = run.and_then(|run| run.plan).map(|plan| encode(&what, &plan)).transpose()?;
            let update = "UPDATE jobs SET wire = $1, release = $2, request = $3, spec = $4, plan = $5 WHERE id = $6";
            let values = [
                newest.into(),
                RELEASE.into(),
                encode(&what, &asked.request)?.into(),
                Value::MaybeBytes(spec),
                Value::MaybeBytes(plan),
                key(job),
            ];
            self.database.change(Durable::Now, &what, vec![Statement::new(update, values)])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::store::{Asked, Keep, StoredRun};
    use crate::planner::settle;
    use crate::planner::tests::{card, request};
    use protocol::{Epoch, RunId};

    #[test]
    fn a_job_that_the_release_before_accepted_is_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        let waiting = store.accept(&Asked::new(request(), 1), 100).unwrap();
        let begun = store.accept(&Asked::new(request(), 2), 101).unwrap();
        let spec = settle(&request(), &card(), 2).unwrap();
        let run = StoredRun { epoch: Epoch(1), model: "ab".to_owned(), spec, plan: None };
        store.started(begun, &run, 102).unwrap();
        store.checkpoint(RunId { job: begun, epoch: Epoch(1) }, 3, 8, &[7; 9]).unwrap();
        let before = store.unfinished().unwrap();
        assert_eq!(before.jobs.iter().map(|job| job.job).collect::<Vec<_>>(), [waiting, begun]);
        let older = format!("UPDATE jobs SET wire = {}, release = '0.0.9'", Version::OLDEST);
        let older = Statement::new(&older, Vec::new());
        store.database.change(Durable::Now, &"a test's", vec![older]).unwrap();
        drop(store);

        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.unfinished().unwrap(), before);
        let select = Statement::new("SELECT wire, release FROM jobs", Vec::new());
        let written = store.rows(&"a test's", select, |mut row| {
            Ok((row.take::<u16>("wire")?, row.take::<String>("release")?))
        });
        let anew = (Version::newest().number(), RELEASE.to_owned());
        assert_eq!(written.unwrap(), [anew.clone(), anew]);
    }
}
