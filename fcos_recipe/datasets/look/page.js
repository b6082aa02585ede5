const form = document.querySelector("form"), figures = [...document.querySelectorAll("figure")];
const missed = document.getElementById("missed"), chosen = document.getElementById("class");
form.hidden = false;
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", () => {
  document.documentElement.style.setProperty("--width",
    document.getElementById("width").value + "px");
  let shown = 0;
  for (const figure of figures) {
    const classes = figure.dataset.classes.split(" ");
    figure.hidden = (chosen.value !== "" && !classes.includes(chosen.value)) ||
      (missed !== null && missed.checked && !("missed" in figure.dataset));
    shown += !figure.hidden;
  }
  form.querySelector("output").value = `${shown} of ${figures.length} images`;
});
