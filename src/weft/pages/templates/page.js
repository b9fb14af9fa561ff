// Plays one clip at a time and sets its progress as --played, from 0 to 1, for the style sheet.
document.documentElement.classList.add("js");

for (const control of document.querySelectorAll("[data-play]")) {
  const audio = control.nextElementSibling;
  const track = control.closest("[data-track]") || control;

  const draw = () => {
    track.style.setProperty("--played", audio.currentTime / audio.duration || 0);
    if (!audio.paused) requestAnimationFrame(draw);
  };
  const play = () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    audio.play();
  };
  const toggle = () => (audio.paused ? play() : audio.pause());

  control.addEventListener("click", toggle);
  if (control.tagName !== "BUTTON") {
    control.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      toggle();
    });
  }
  audio.addEventListener("play", () => { track.classList.add("playing"); draw(); });
  audio.addEventListener("pause", () => track.classList.remove("playing"));
  audio.addEventListener("ended", () => { audio.currentTime = 0; });

  const wave = track.querySelector("[data-seek]");
  if (wave) wave.addEventListener("click", (event) => {
    const fraction = event.offsetX / wave.clientWidth;
    const seek = () => { audio.currentTime = fraction * audio.duration; };
    if (audio.readyState) seek(); else audio.addEventListener("loadedmetadata", seek, { once: true });
    play();
  });
}
