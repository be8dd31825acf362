//! The end of a run that is not carried through.

use std::future;
use tokio::sync::watch;

/// Closes all links of one run at once, whoever holds them. Dropping it does nothing; clones close
/// the same links.
#[derive(Clone, Debug)]
pub struct Hangup(watch::Sender<bool>);

impl Default for Hangup {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Hangup {
    /// Closes the links now; what is under way is lost.
    pub fn now(&self) {
        self.0.send_replace(true);
    }

    /// Ready when [`Self::now`] is called, before or after this; never, if it is not.
    pub(super) fn wait(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut hung_up = self.0.subscribe();
        async move {
            if hung_up.wait_for(|now| *now).await.is_err() {
                future::pending::<()>().await;
            }
        }
    }
}
