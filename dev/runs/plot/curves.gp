# Loss over updates. Called by dev/runs/plot.sh with train, val, title, seeds, and patterns with
# their colours, dashes, points. Training and validation above, on one scale; below, validation loss
# minus that of t at equal seeds.
n = words(patterns)
longest = 0
do for [i=1:n] { if (strlen(word(patterns, i)) > longest) { longest = strlen(word(patterns, i)) } }
right = longest > 8 ? 0.855 : 0.92 # names stand beside the panels
set grid lc rgb '#cccccc' lw 0.7 dt 1
set border 3 lc rgb '#444444'
set tics nomirror
set xlabel 'updates'
stats val using 1 nooutput
last = STATS_max
stats val using ($1 >= last / 8 ? $2 : NaN) nooutput
low = STATS_min
high = STATS_max
stats train using ($1 >= last / 8 ? $2 : NaN) nooutput
low = low < STATS_min ? low : STATS_min
high = high > STATS_max ? high : STATS_max
gap = high > low ? 0.05 * (high - low) : 0.1
set xrange [0:last]
set yrange [low - gap:high + gap]
set multiplot
set label 1 title at screen 0.5, 0.975 center font ',16'
set label 2 seeds.'; training loss: mean of each fortieth of the run' at screen 0.5, 0.943 \
    center tc rgb '#444444'

set key off
set lmargin at screen 0.065
set rmargin at screen 0.455
set bmargin at screen 0.53
set tmargin at screen 0.90
set ylabel 'training loss (nats per token)'
plot for [i=1:n] train index i-1 using 1:2 with lines lw 2 \
    lc rgb word(colours, i) dt int(word(dashes, i)) title word(patterns, i)

unset label 1
unset label 2
set lmargin at screen 0.53
set rmargin at screen right
set ylabel 'validation loss (nats per token)'
set key at screen 0.995, screen 0.9 right top title 'pattern' left reverse Left samplen 2.5
plot for [i=1:n] val index i-1 using 1:($1 > 0 ? $2 : NaN) with linespoints lw 2 ps 1.1 \
    lc rgb word(colours, i) dt int(word(dashes, i)) pt int(word(points, i)) title word(patterns, i)

set key off
set lmargin at screen 0.065
set rmargin at screen right
set bmargin at screen 0.08
set tmargin at screen 0.44
set ylabel 'validation loss minus that of t (nats)' offset 1.5, 0
set autoscale y
plot 0 lw 1 lc rgb '#000000' notitle, \
    for [i=1:n] val index i-1 using 1:($1 >= last / 8 ? $3 : NaN) with linespoints lw 2 ps 1.1 \
    lc rgb word(colours, i) dt int(word(dashes, i)) pt int(word(points, i)) title word(patterns, i)
unset multiplot
