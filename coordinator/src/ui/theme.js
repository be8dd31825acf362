// Runs before the page is drawn, so that it never flashes in the other theme.
try {
  const theme = JSON.parse(localStorage.getItem("tessera.theme"));
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Nothing may be stored here, or it is not ours: the system's theme it is.
}
